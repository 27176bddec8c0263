"""The command line `zskd-fast`."""
