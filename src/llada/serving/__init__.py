"""Servers on this machine: pages and programming interfaces over HTTP."""
