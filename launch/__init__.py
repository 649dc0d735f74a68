"""What a person starts: one short program each, and the pictures they show."""
