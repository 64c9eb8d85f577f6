"""What differs from vendor to vendor."""
