"""Generations: what is published, in files or in Redis, and how it travels between hosts."""
