"""What the device does next: a pure policy, and the one thread that owns the device."""
