"""`natf doctor`: what on this host keeps NAT-f from working, and what to do about it.

The system is asked once (`facts`), and judged by pure functions, one topic a module. Nothing is ever changed.
"""
