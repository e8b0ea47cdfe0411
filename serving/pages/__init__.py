"""What people look at in a browser, and what it is made of."""
