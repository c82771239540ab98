"""Upgrade a self-hosted Multica database from its daily usage rollups to the hourly one."""
