"""Command line; each verb has a module."""
