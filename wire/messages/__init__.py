"""The message types: one frozen Struct per message, and the parts that they share, by who speaks.

This is the schema of the protocol (`docs/protocol.md` is its prose). A frame is a map `{v, t, id, b}`:
protocol version, message type, correlation id, body. A field with a default may be left out by the sender; an
unknown field is refused. No behaviour lives here beyond small derived properties.

They are used as `from wire import messages as m`. The order below is that of the document's tables."""

from wire.messages.base import *
from wire.messages.vm import *
from wire.messages.agent import *
from wire.messages.operator import *
from wire.messages.views import *
