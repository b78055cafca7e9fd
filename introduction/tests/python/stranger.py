"""A peer and a server that are not ours, as Spritely Goblins 0.17 and 0.18 are ("goblins") and as the draft
of the netlayer has it ("draft"). Written from the description of the protocol with Python's standard library,
so that the two sides of a test share no line.

    stranger.py peer FORM SEED LINE      a peer; LINE is `fd:N` or the path of a server
    stranger.py server FORM SEED PATH    a server that listens there
    stranger.py check FIXTURES           its own parts against what is written down elsewhere
    stranger.py write FIXTURES           writes the fixtures anew

A peer and a server are told what to do line by line on descriptor 3, and answer each line with one.

What a Goblins is known by: it takes a byte at a time with `read`, which would close a descriptor that came
with it, and asks with `recvmsg` for four bytes and one descriptor where one is due; signatures are 64 raw
bytes from a peer, bare from a server. The draft takes what there is and offers room for descriptors with
every read; signatures are lists, and a server's is wrapped.
"""

import array
import base64
import os
import socket
import sys
import threading
import traceback

import ed25519
import syrup

CHALLENGE_BYTES = 64
# 12345 in four bytes.
DUMMY = b"\x39\x30\x00\x00"
READ_BYTES = 8192
DUMMY_BYTES_MAX = 4096


# -- what is said ------------------------------------------------------------------------------------------


def designator(key):
    return base64.b32encode(key).decode().rstrip("=").lower()


def key_of(text):
    key = base64.b32decode(text.upper() + "====")
    assert len(key) == 32 and designator(key) == text
    return key


def locator(who, hints=b"f"):
    parts = [b"<", syrup.symbol("ocapn-peer"), syrup.symbol("unix-domain-socket"), syrup.string(who), hints, b">"]
    return b"".join(parts)


def hints_of_uri(uri):
    """Whom a URI names, and its hints as Syrup."""
    assert uri.startswith("ocapn://")
    host, _, query = uri[len("ocapn://") :].partition("?")
    who, _, transport = host.partition(".")
    assert transport == "unix-domain-socket"
    pairs = [hint.split("=") for hint in query.split("&") if hint]
    written = sorted((syrup.string(key), syrup.string(value)) for key, value in pairs)
    return who, b"{" + b"".join(key + value for key, value in written) + b"}" if written else b"f"


def public_key(key):
    named = b"[" + syrup.symbol("curve") + syrup.symbol("Ed25519") + b"]"
    named += b"[" + syrup.symbol("flags") + syrup.symbol("eddsa") + b"]"
    named += b"[" + syrup.symbol("q") + syrup.octets(key) + b"]"
    return b"[" + syrup.symbol("public-key") + b"[" + syrup.symbol("ecc") + named + b"]]"


def signature_list(signature):
    r = b"[" + syrup.symbol("r") + syrup.octets(signature[:32]) + b"]"
    s = b"[" + syrup.symbol("s") + syrup.octets(signature[32:]) + b"]"
    return b"[" + syrup.symbol("sig-val") + b"[" + syrup.symbol("eddsa") + r + s + b"]]"


def register(own, challenge):
    return b"<" + syrup.symbol("uds:register") + own + syrup.octets(challenge) + b">"


def server_response(form, seed, signed, challenge):
    signature = signature_list(ed25519.sign(seed, signed))
    if form == "draft":
        signature = b"<" + syrup.symbol("uds:signature") + syrup.octets(signed) + signature + b">"
    key = public_key(ed25519.public_key(seed))
    return b"<" + syrup.symbol("uds:server-response") + key + syrup.octets(challenge) + signature + b">"


def peer_signature(form, seed, challenge):
    signature = ed25519.sign(seed, challenge)
    written = syrup.octets(signature) if form == "goblins" else signature_list(signature)
    return b"<" + syrup.symbol("uds:signature") + syrup.octets(challenge) + written + b">"


def new_connection(from_locator, to_locator):
    return b"<" + syrup.symbol("uds:new-connection") + from_locator + to_locator + b">"


def read_signature(value):
    if isinstance(value, bytes):
        assert len(value) == 64
        return value
    label, (scheme, (r, r_bytes), (s, s_bytes)) = value
    assert (label, scheme, r, s) == ("sig-val", "eddsa", "r", "s")
    assert len(r_bytes) == len(s_bytes) == 32
    return r_bytes + s_bytes


def read_locator(value):
    label, transport, who, hints = value
    assert (label, transport) == ("ocapn-peer", "unix-domain-socket")
    return who, hints


# -- how it is said ----------------------------------------------------------------------------------------


class Line:
    """A stream that records and descriptors come over."""

    def __init__(self, stream):
        self.stream = stream
        # So many bytes at a time are written; so many go with a descriptor, and whether on the record itself.
        self.piece = None
        self.dummy = DUMMY
        self.together = False

    def record(self):
        value, raw = syrup.read(self.take)
        assert isinstance(value, syrup.Record)
        return value, raw

    def say(self, written):
        piece = self.piece or len(written)
        for start in range(0, len(written), piece):
            self.stream.sendall(written[start : start + piece])

    def introduce(self, written, fd):
        if self.together:
            written += self.dummy
            sent = self.stream.sendmsg([written], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            assert sent == len(written)
        else:
            self.say(written)
            sent = self.stream.sendmsg([self.dummy], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            assert sent == len(self.dummy)
        os.close(fd)


def descriptors_in(control):
    found = array.array("i")
    for level, kind, content in control:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return list(found)


class GoblinsLine(Line):
    def take(self, count):
        taken = b""
        while len(taken) < count:
            byte = os.read(self.stream.fileno(), 1)
            if not byte:
                raise EOFError
            taken += byte
        return taken

    def descriptor(self):
        dummy, control, flags, _ = self.stream.recvmsg(len(DUMMY), socket.CMSG_SPACE(4))
        if not dummy:
            raise EOFError
        assert not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
        assert dummy == DUMMY, dummy
        [fd] = descriptors_in(control)
        return fd


class DraftLine(Line):
    def __init__(self, stream):
        super().__init__(stream)
        self.left = b""
        self.fds = []

    def read(self):
        came, control, flags, _ = self.stream.recvmsg(READ_BYTES, socket.CMSG_SPACE(4 * 4))
        if not came:
            raise EOFError
        assert not flags & socket.MSG_CTRUNC
        fds = descriptors_in(control)
        assert not fds or len(came) < READ_BYTES
        self.fds += fds
        self.left += came

    def take(self, count):
        while len(self.left) < count:
            self.read()
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def descriptor(self):
        """All that follows the record in the read that brought the descriptor was sent along with it."""
        if not self.fds:
            assert not self.left, self.left
            self.read()
        assert len(self.left) <= DUMMY_BYTES_MAX
        self.left = b""
        [fd] = self.fds
        self.fds = []
        return fd


LINES = {"goblins": GoblinsLine, "draft": DraftLine}


def random_challenge():
    return os.urandom(CHALLENGE_BYTES)


# -- a peer ------------------------------------------------------------------------------------------------


class Peer:
    def __init__(self, form, seed, where):
        self.form, self.seed = form, bytes([int(seed)] * 32)
        self.own = designator(ed25519.public_key(self.seed))
        self.hints = b"f"
        self.kind = socket.SOCK_STREAM
        if where.startswith("fd:"):
            stream = socket.socket(fileno=int(where[3:]))
        else:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stream.connect(where)
        self.line = LINES[form](stream)
        self.near = None

    def set_hints(self, written):
        self.hints = written.encode()
        return "ok"

    def set_piece(self, count):
        self.line.piece = int(count)
        return "ok"

    def set_dummy(self, count, together):
        self.line.dummy = b"<" * int(count)
        self.line.together = together == "together"
        return "ok"

    def set_kind(self, kind):
        self.kind = {"stream": socket.SOCK_STREAM, "packets": socket.SOCK_SEQPACKET}[kind]
        return "ok"

    def greeted(self):
        """Everything up to the signature; what is to be said is given back."""
        challenge = random_challenge()
        self.line.say(register(locator(self.own, self.hints), challenge))
        response, raw = self.line.record()
        label, key, theirs, signature = response
        assert label == "uds:server-response"
        [_, [_, _, _, [_, q]]] = key
        if isinstance(signature, syrup.Record):
            wrapper, payload, signature = signature
            assert (wrapper, payload) == ("uds:signature", challenge)
        assert len(theirs) == CHALLENGE_BYTES
        assert ed25519.is_signed(q, challenge, read_signature(signature))
        self.server = q
        self.raw_response, self.challenge = raw, challenge
        return peer_signature(self.form, self.seed, theirs)

    def register(self):
        self.line.say(self.greeted())
        return designator(self.server)

    def expect_response_of(self, form, seed):
        """Whether what the server said is, to the byte, what the description says it says."""
        theirs = self.raw_response[self.raw_response.index(b"]]]64:") + 6 :][:64]
        expected = server_response(form, bytes([int(seed)] * 32), self.challenge, theirs)
        assert self.raw_response == expected, (self.raw_response, expected)
        return "ok"

    def introduction(self, to, hints):
        return new_connection(locator(self.own, self.hints), locator(to, hints))

    def pair(self):
        near, far = socket.socketpair(socket.AF_UNIX, self.kind)
        self.near = near
        return far.detach()

    def ask(self, uri):
        self.line.introduce(self.introduction(*hints_of_uri(uri)), self.pair())
        return "ok"

    def ask_with(self, to, hints):
        self.line.introduce(self.introduction(to, hints.encode()), self.pair())
        return "ok"

    def register_and_ask(self, uri):
        """The signature and the introduction leave in one piece."""
        signature = self.greeted()
        self.line.introduce(signature + self.introduction(*hints_of_uri(uri)), self.pair())
        return designator(self.server)

    def answer(self, asker):
        (label, *locators), raw = self.line.record()
        assert label == "uds:new-connection"
        (from_key, _), (to_key, _) = map(read_locator, locators)
        assert (from_key, to_key) == (asker, self.own)
        self.near = socket.socket(fileno=self.line.descriptor())
        return raw.decode("ascii")

    def greet(self):
        self.near.sendall(b"hello from python")
        said = self.near.recv(len(b"hello from rust"), socket.MSG_WAITALL)
        assert said == b"hello from rust", said
        return "ok"

    def say(self):
        self.near.sendall(b"hello from python")
        return "ok"

    def hear(self):
        """As `say` has it: the other is in Python too."""
        said = self.near.recv(len(b"hello from python"), socket.MSG_WAITALL)
        assert said == b"hello from python", said
        self.near.close()
        return "ok"

    def ended(self):
        assert self.near.recv(1) == b""
        self.near.close()
        return "ok"

    def leave(self):
        self.line.stream.close()
        return "ok"


# -- a server ----------------------------------------------------------------------------------------------


class Server:
    def __init__(self, form, seed, path):
        self.form, self.seed = form, bytes([int(seed)] * 32)
        self.lock = threading.Lock()
        self.peers, self.waiting, self.lines = {}, [], []
        self.piece, self.dummy, self.together = None, DUMMY, False
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            stream, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=[stream], daemon=True).start()

    def set_piece(self, count):
        self.piece = int(count)
        return "ok"

    def set_dummy(self, count, together):
        self.dummy, self.together = b"<" * int(count), together == "together"
        return "ok"

    def key(self):
        return designator(ed25519.public_key(self.seed))

    def registered(self, who):
        with self.lock:
            return str(who in self.peers).lower()

    def disconnect(self):
        """All peers, as if the server had ended."""
        with self.lock:
            for line in self.lines:
                line.stream.shutdown(socket.SHUT_RDWR)
        return "ok"

    def serve(self, stream):
        line = LINES[self.form](stream)
        line.piece, line.dummy, line.together = self.piece, self.dummy, self.together
        who = None
        try:
            (label, own, challenge), _ = line.record()
            assert label == "uds:register"
            who, _ = read_locator(own)
            ours = random_challenge()
            line.say(server_response(self.form, self.seed, challenge, ours))
            (label, payload, signature), _ = line.record()
            assert (label, payload) == ("uds:signature", ours)
            # As it answers, so it is answered.
            assert isinstance(signature, bytes) == (self.form == "goblins")
            assert ed25519.is_signed(key_of(who), ours, read_signature(signature))
            with self.lock:
                self.peers[who] = line
                self.lines.append(line)
                waiting = [it for it in self.waiting if it[0] == who]
                self.waiting = [it for it in self.waiting if it[0] != who]
                for _, raw, fd in waiting:
                    line.introduce(raw, fd)
            while True:
                (label, from_locator, to_locator), raw = line.record()
                assert label == "uds:new-connection"
                assert read_locator(from_locator)[0] == who
                to, _ = read_locator(to_locator)
                fd = line.descriptor()
                with self.lock:
                    if to in self.peers:
                        self.peers[to].introduce(raw, fd)
                    else:
                        self.waiting.append((to, raw, fd))
        except (EOFError, ConnectionError):
            pass
        finally:
            with self.lock:
                if self.peers.get(who) is line:
                    del self.peers[who]
                if line in self.lines:
                    self.lines.remove(line)
            stream.close()


# -- fixtures ----------------------------------------------------------------------------------------------

ANNE, BERT, SERVER = bytes([1] * 32), bytes([2] * 32), bytes([100] * 32)
PEERS_CHALLENGE, SERVERS_CHALLENGE = bytes(range(64)), bytes(range(192, 256))


class Fresh(int):
    """So many bytes that are new each time."""


def fixtures():
    """What is said, as (bytes, what they are): each field by itself, with its bytes put together here by hand
    and not by the functions above."""
    anne, bert = (designator(ed25519.public_key(seed)).encode() for seed in (ANNE, BERT))
    server_key = ed25519.public_key(SERVER)
    server = designator(server_key).encode()
    servers_signature = ed25519.sign(SERVER, PEERS_CHALLENGE)
    annes_signature = ed25519.sign(ANNE, SERVERS_CHALLENGE)

    def peer(name, who, hints):
        return [
            (b"<10'ocapn-peer", f"{name}'s locator"),
            (b"18'unix-domain-socket", "its transport"),
            (b'52"' + who, "its designator"),
            *hints,
            (b">", ""),
        ]

    no_hints = [(b"f", "no hints")]
    at_server = [(b'{52"' + server, "hints: a server's key"), (b'1"t', "a value that means nothing")]
    key = [
        (b"[10'public-key[3'ecc", "the server's key"),
        (b"[5'curve7'Ed25519]", ""),
        (b"[5'flags5'eddsa]", ""),
        (b"[1'q32:", ""),
        (server_key, ""),
        (b"]]]", ""),
    ]

    def signature(whose, signed):
        return [
            (b"[7'sig-val[5'eddsa", f"{whose} signature, as a list"),
            (b"[1'r32:", ""),
            (signed[:32], ""),
            (b"][1's32:", ""),
            (signed[32:], ""),
            (b"]]]", ""),
        ]

    fresh_response = [(b"<19'uds:server-response", ""), *key, (b"64:", "the server's challenge"), (Fresh(64), "")]
    response = [*fresh_response[:-1], (SERVERS_CHALLENGE, "")]
    payload = [(b"<13'uds:signature", ""), (b"64:", "the server's challenge"), (SERVERS_CHALLENGE, "")]
    wrapper = [(b"<13'uds:signature", "the draft wraps it"), (b"64:", ""), (PEERS_CHALLENGE, "")]
    return {
        "register": [
            (b"<12'uds:register", ""),
            *peer("Anne", anne, no_hints),
            (b"64:", "her challenge"),
            (PEERS_CHALLENGE, ""),
            (b">", ""),
        ],
        "register-of-ours": [
            (b"<12'uds:register", ""),
            *peer("Anne", anne, [(b'{9"sendright1"1}', "speaks the extension")]),
            (b"64:", "her challenge"),
            (Fresh(64), ""),
            (b">", ""),
        ],
        "server-response-goblins": [*fresh_response, *signature("its", servers_signature), (b">", "")],
        "server-response-draft": [
            *fresh_response,
            *wrapper,
            *signature("its", servers_signature),
            (b">>", ""),
        ],
        "signature-goblins": [
            *payload,
            (b"64:", "Anne's signature, raw"),
            (annes_signature, ""),
            (b">", ""),
        ],
        "signature-draft": [*payload, *signature("Anne's", annes_signature), (b">", "")],
        "new-connection": [
            (b"<18'uds:new-connection", ""),
            *peer("Anne", anne, no_hints),
            *peer("Bert", bert, no_hints),
            (b">", ""),
        ],
        "new-connection-with-any-hints": [
            (b"<18'uds:new-connection", ""),
            *peer(
                "Anne",
                anne,
                [
                    (b'{52"' + server, "hints: a server's key"),
                    (b"[1+2-<1'x1:y>]", "a value that means nothing"),
                    (b"7'nothing", "a key that means nothing"),
                    (b"{}}", ""),
                ],
            ),
            *peer("Bert", bert, [(b"{}", "hints, none of them")]),
            (b">", ""),
        ],
        "new-connection-of-ours": [
            (b"<18'uds:new-connection", ""),
            *peer("Anne", anne, [*at_server, (b'9"seqpacket1"t}', "takes packets too")]),
            *peer("Bert", bert, [*at_server, (b"}", "")]),
            (b">", ""),
        ],
        "dummy": [(DUMMY, "sent along with a descriptor: 12345")],
    }


def written(parts):
    lines = []
    for part, remark in parts:
        shown = ["??"] * part if isinstance(part, Fresh) else [f"{byte:02x}" for byte in part]
        rows = [shown[start : start + 24] for start in range(0, len(shown), 24)]
        for index, row in enumerate(rows):
            text = " ".join(row)
            isprint = not isinstance(part, Fresh) and part.isascii() and part.decode().isprintable()
            start = 24 * index
            said = part[start : start + 24].decode() if isprint else ""
            remarks = "  ".join(filter(None, [said, remark if index == 0 else ""]))
            lines.append(f"{text:71}  # {remarks}" if remarks else text)
    return "\n".join(lines) + "\n"


def bytes_of(text):
    """What a fixture says; `None` for a byte that is new each time."""
    tokens = [token for line in text.splitlines() for token in line.partition("#")[0].split()]
    return [None if token == "??" else int(token, 16) for token in tokens]


def write(folder):
    for name, parts in fixtures().items():
        with open(os.path.join(folder, name + ".hex"), "w", encoding="ascii") as file:
            file.write(written(parts))


def check(folder):
    """The parts of this file against the standard's vectors, and against the fixtures."""
    ed25519.check()
    said = {}
    for name, parts in fixtures().items():
        with open(os.path.join(folder, name + ".hex"), encoding="ascii") as file:
            said[name] = bytes_of(file.read())
        flat = [it for part, _ in parts for it in ([None] * part if isinstance(part, Fresh) else part)]
        assert said[name] == flat, name
    anne, bert = (designator(ed25519.public_key(seed)) for seed in (ANNE, BERT))

    def is_said(name, built):
        assert len(built) == len(said[name]), name
        assert all(at is None or at == byte for at, byte in zip(said[name], built)), name
        value, raw = syrup.read(lambda count, rest=[built]: take_from(rest, count))
        assert raw == built

    is_said("register", register(locator(anne), PEERS_CHALLENGE))
    for form in LINES:
        response = server_response(form, SERVER, PEERS_CHALLENGE, SERVERS_CHALLENGE)
        is_said("server-response-" + form, response)
        is_said("signature-" + form, peer_signature(form, ANNE, SERVERS_CHALLENGE))
    is_said("new-connection", new_connection(locator(anne), locator(bert)))
    assert len(said["register"]) == 176
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        return
    for length in range(0, 65, 8):
        seed, message = os.urandom(32), os.urandom(length)
        signed = Ed25519PrivateKey.from_private_bytes(seed).sign(message)
        assert ed25519.sign(seed, message) == signed


def take_from(rest, count):
    taken, rest[0] = rest[0][:count], rest[0][count:]
    return taken


# -- being told --------------------------------------------------------------------------------------------


def obey(stranger):
    control = socket.socket(fileno=3)
    for line in control.makefile("r", encoding="ascii"):
        verb, *words = line.rstrip("\n").split(" ")
        try:
            answer = getattr(stranger, verb)(*words)
        except Exception:
            answer = "failed: " + traceback.format_exc().replace("\n", " | ")
        control.sendall((answer + "\n").encode())


def main():
    role, *words = sys.argv[1:]
    {
        "peer": lambda: obey(Peer(*words)),
        "server": lambda: obey(Server(*words)),
        "check": lambda: check(*words),
        "write": lambda: write(*words),
    }[role]()


main()
