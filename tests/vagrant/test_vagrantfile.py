"""The Vagrantfile hands machines.json on as it is: by Vagrant's own check, and by what it asks of Vagrant."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vagrant.machines import LAB, MACHINES, VAGRANT, environment, links

needs_vagrant = pytest.mark.skipif(not shutil.which("vagrant"), reason="no vagrant (apt-get install vagrant)")
needs_ruby = pytest.mark.skipif(not shutil.which("ruby"), reason="no ruby (apt-get install ruby)")

RECORDER = """
require "json"

class Recorder
  attr_reader :facts

  def initialize(facts = {})
    @facts = facts
  end

  def define(name)
    yield(@facts[name] = Recorder.new)
  end

  def provider(name)
    yield(@facts[name] = Recorder.new)
  end

  def network(kind, **options)
    (@facts[kind] ||= []) << options
  end

  def provision(name, **options)
    (@facts["steps"] ||= []) << options.merge(name: name)
  end

  def synced_folder(from, to, **options)
    (@facts["folders"] ||= []) << [from, to, options]
  end

  def method_missing(name, value = nil)
    key = name.to_s
    key.end_with?("=") ? @facts[key.chomp("=")] = value : @facts[key] ||= Recorder.new
  end

  def respond_to_missing?(*)
    true
  end

  def to_json(*options)
    @facts.to_json(*options)
  end
end

module Vagrant
  def self.configure(_version)
    config = Recorder.new
    yield config
    puts config.to_json
  end
end

load ARGV[0]
"""


def asked(**environ: str) -> dict[str, Any]:
    """What the Vagrantfile asks of Vagrant."""
    argv = ["ruby", "-e", RECORDER, str(VAGRANT / "Vagrantfile")]
    done = subprocess.run(argv, env=os.environ | environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@needs_vagrant
def test_vagrant_finds_no_fault(tmp_path: Path) -> None:
    """Without a provider and without the network, which `vagrant validate` does not need."""
    settings = {
        "VAGRANT_HOME": str(tmp_path),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }
    argv = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(argv, cwd=VAGRANT, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_ruby
def test_every_machine_gets_its_links_and_steps() -> None:
    machines = asked()["vm"]
    for name in MACHINES:
        node = machines[name]["vm"]
        assert [network["ip"] for network in node["private_network"]] == [
            link.addresses[0].partition("/")[0] for link in links(name)
        ]
        assert [network["mac"] for network in node["private_network"]] == [
            link.mac.replace(":", "") for link in links(name)
        ]
        assert [step["name"] for step in node["steps"]] == MACHINES[name]["steps"]
        for step in node["steps"]:
            assert step["env"] == environment(name)
            assert (VAGRANT / step["path"]).is_file()


@needs_ruby
def test_there_are_no_other_networks_and_those_reach_nobody_else() -> None:
    vm = asked()["vm"]
    for name in MACHINES:
        node = vm[name]["vm"]
        assert node.keys() == {"private_network", "steps"}
        for network, link in zip(node["private_network"], links(name), strict=True):
            assert network["virtualbox__intnet"] == network["libvirt__network_name"] == f"natf-{link.network}"
            assert network["libvirt__forward_mode"] == "veryisolated"
            assert network["libvirt__dhcp_enabled"] is False
            assert network["auto_config"] is False
            assert network["netmask"] == str(ipaddress.ip_network(LAB["networks"][link.network]).netmask)


@needs_ruby
def test_one_variable_chooses_the_box() -> None:
    assert asked()["vm"]["box"] == LAB["box"]
    assert asked(NATF_BOX="FreeBSD/FreeBSD-15.0-RELEASE")["vm"]["box"] == "FreeBSD/FreeBSD-15.0-RELEASE"


@needs_ruby
def test_the_checkout_goes_there_by_rsync() -> None:
    [off, checkout] = asked()["vm"]["folders"]
    assert off == [".", "/vagrant", {"disabled": True}]
    assert checkout == ["..", LAB["source"], {"type": "rsync", "rsync__exclude": LAB["exclude"]}]
