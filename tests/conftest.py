"""Real servers and models that several test files share."""
