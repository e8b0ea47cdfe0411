"""Who may ask what, how much and how often, and what is written down of it."""
