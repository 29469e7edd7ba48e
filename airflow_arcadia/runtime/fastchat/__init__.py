"""FastChat's worker protocol: its calls, the conversation template and the registration with a controller."""
