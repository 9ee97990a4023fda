"""The search page: a small server for one person on one machine. Needs the extra `app`; no other package imports this one."""
