"""`natf bench`: what NAT-f costs, beside a static port forward of the same router, in one run on one lab."""
