"""`WS /api/ws`: start, follow and cancel many runs over one socket (`docs/protocols/websocket.md`).

door            the route: from the handshake to the close
├── admission   who may open a socket
└── open_socket reads messages, answers them, and ends for one reason
    ├── messages    what a client may say
    ├── frames      what the server says
    ├── following   one run that the socket follows
    └── ending      why a socket ends, and how the client is told
"""

from headrace.server.websocket.door import router

__all__ = ["router"]
