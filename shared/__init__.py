"""What every service speaks. Imports nothing of services/."""
