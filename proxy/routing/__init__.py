"""What routes are made of: the way to each upstream, and what an envelope asks for."""
