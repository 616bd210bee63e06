"""The door to the network: an HTTP and WebSocket server for any ASGI app, with deadlines and an orderly end.

Listener            binds, serves, and ends on a signal
├── Lifespan        the start and the end of the app
└── Room            what all connections share, and who is in it
    ├── HttpConnection        uvicorn's, with deadlines and limits
    └── WebSocketConnection   uvicorn's, with limits and a proper end
"""

from headrace.server.listener.listener import Listener
from headrace.server.listener.room import Deadlines

__all__ = ["Deadlines", "Listener"]
