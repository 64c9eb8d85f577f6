"""What each dialect's streams say, as typed events (contract §9)."""
