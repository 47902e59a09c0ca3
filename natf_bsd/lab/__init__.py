"""The paper's figures as running networks: real hosts, servers and NAT, shut off from everything else.

`figure1.Figure1Lab` and `figure3.Figure3Lab` are the ways in, `daemons.DaemonLab` is what they have in common;
`topology` is what is built, `netns` builds it on Linux, `jails` on FreeBSD, `services` runs on it.
"""
