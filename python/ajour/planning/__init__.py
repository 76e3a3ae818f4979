"""Planning: measures on this device which kernel serves which layer, and leaves a record that a person can read."""
