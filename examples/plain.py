"""Plain objects in twenty lines of Python's standard library: call one, serve one, pass one on.

`socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)` makes one: whoever holds the first end calls,
whoever holds the second is called. It is passed on by its number, as an argument of a call or with an answer.
Messages and answers are bytes, 1 to 102,080 of them: an empty packet is never sent, for it could not be told
from the end of file.

This trusts those who hold its objects; what a server of strangers watches for besides is in PROTOCOL.md,
under "What holds everywhere".
"""
import contextlib, os, socket

def receive(end):
    """Message, descriptors, flags and None. No message: nobody holds the other end any more."""
    end.setblocking(True)  # all holders share this setting, so it may have been changed
    packet = socket.recv_fds(end, 102080, 253)
    # Nothing, once, proves nothing: it can race with what was sent just before the other end was closed.
    return packet if packet[0] else socket.recv_fds(end, 102080, 253)

def call(thing, message, *arguments):
    """As `receive`: what was answered, or no message if nobody will. The arguments remain the caller's."""
    thing.setblocking(True)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near:
        with far:  # closed once it is sent, or nobody would notice that the answerer died
            socket.send_fds(thing, [message], [*arguments, far.fileno()])
        return receive(near)

def serve(mailbox, handler):
    """Until nobody holds it. `handler(message, arguments)` gives ([answer], descriptors); if it raises an
    OSError, nobody answers. The arguments are closed afterwards: `os.dup` what is to be kept."""
    while (packet := receive(mailbox))[0]:
        message, fds, flags, _ = packet
        if fds and not flags & socket.MSG_CTRUNC:  # the last is where to answer, if none is lost
            with contextlib.suppress(OSError), socket.socket(fileno=fds[-1]) as answer:
                fds.pop()  # closed with the socket from here on
                socket.send_fds(answer, *handler(message, fds))
        for fd in fds: os.close(fd)
