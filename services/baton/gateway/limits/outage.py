"""What limits do while Redis, which all gateways count in, is away."""

LOCAL = "local"  # each gateway counts alone
REFUSE = "refuse"  # keys with limits are let in by nobody
