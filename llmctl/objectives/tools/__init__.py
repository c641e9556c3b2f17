"""Tools that a policy calls while it answers: what they are, how they are run, and how an answer goes on."""
