"""What every HTTP endpoint needs, whichever API it speaks: bodies, disconnects, event streams, request ids."""
