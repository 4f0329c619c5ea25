"""The past that ``umbel demo --keep`` makes up, so that the console opens on a fleet that somebody has lived in.

It is made up, and says so: its devices have the tag ``generated``, its model says it in its purpose, the audit log
before and after it, and the console on every page. How it is made is not: keys and packages are real and signed,
approvals are given by accounts that may, reports are sealed and opened as any, rollouts are decided by their gates,
and alerts fire by their rules. Nothing of it is written past what the services use themselves.
"""
