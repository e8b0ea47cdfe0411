"""What is counted, and `/metrics`."""
