# Draws a flame graph: reads sorted lines of "frame;frame;frame count", the outermost first, and writes one SVG.
# Each box says its function and its share when the pointer rests on it. Knows nothing of what was sampled.

function escaped(text) {
    gsub(/&/, "\\&amp;", text)
    gsub(/</, "\\&lt;", text)
    gsub(/>/, "\\&gt;", text)
    return text
}

# The frames from `level` inwards have ended: each is a box from where it began until here.
function close_frames(level,    width, shade, label, room) {
    for (; open > level; open--) {
        width = (seen - began[open]) / total * 1180
        if (width < 0.3) continue
        shade = (length(frame[open]) * 37) % 55
        printf "<g><title>%s: %d of %d, %.2f %%</title>", escaped(frame[open]), seen - began[open], total, \
            100 * (seen - began[open]) / total
        printf "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"17\" fill=\"rgb(%d,%d,%d)\"/>", \
            10 + began[open] / total * 1180, height - 20 - open * 18, width, 225 - shade / 3, 120 + shade * 2, 60
        room = int(width / 7)
        label = length(frame[open]) <= room ? frame[open] : substr(frame[open], 1, room - 1) "…"
        if (room >= 3) printf "<text x=\"%.1f\" y=\"%d\">%s</text>", 13 + began[open] / total * 1180, \
            height - 7 - open * 18, escaped(label)
        print "</g>"
    }
}

{
    count = $NF
    sub(/ [0-9]+$/, "")
    line[NR] = $0
    times[NR] = count
    total += count
    frames = split($0, part, ";")
    if (frames > deepest) deepest = frames
}

END {
    height = (deepest + 3) * 18
    print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1200\" height=\"" height "\" viewBox=\"0 0 1200 " height "\">"
    print "<style>text{font:11px monospace;fill:#111}rect{stroke:#fff;stroke-width:.5}</style>"
    print "<rect width=\"1200\" height=\"" height "\" fill=\"#fff\"/>"
    for (n = 1; n <= NR; n++) {
        frames = split(line[n], part, ";")
        same = 0
        while (same < open && same < frames && frame[same + 1] == part[same + 1]) same++
        close_frames(same)
        for (; open < frames;) {
            open++
            frame[open] = part[open]
            began[open] = seen
        }
        seen += times[n]
    }
    close_frames(0)
    print "</svg>"
}
