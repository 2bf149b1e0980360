"""For the person on call: what this machine lacks (doctor), which runs nobody trains any more (reap)."""
