"""What every service needs to run: settings, logs, metrics, the life of its process. Knows no protocol."""
