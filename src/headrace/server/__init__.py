"""The HTTP and WebSocket door: reads the log through protocols, starts runs, and knows no engine, agent or provider."""
