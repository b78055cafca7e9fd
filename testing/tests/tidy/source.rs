//! One Rust file as a checker sees it: its code without comments and strings, its comments without code, and
//! the words the code is made of.
//!
//! Knows the lexical shape of Rust and no rule of the house.

/// A file, twice blanked: line and column are the same in all three texts.
pub struct Source {
    /// From the root of the workspace.
    pub path: String,
    pub text: String,
    /// Comments, and what stands in strings and characters, are spaces here.
    pub code: String,
    /// Everything but comments is spaces here.
    pub comments: String,
}

/// A name, a number, `::`, or any other single character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'a> {
    pub text: &'a str,
    /// From 1.
    pub line: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Literal,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        let parts = parts(&text.chars().collect::<Vec<char>>());
        let keep = |wanted: Part| -> String {
            let kept = text.chars().zip(&parts).map(|(c, part)| match c {
                '\n' => '\n',
                c if *part == wanted => c,
                _ => ' ',
            });
            kept.collect()
        };
        let (code, comments) = (keep(Part::Code), keep(Part::Comment));
        Source { path: path.to_owned(), text: text.to_owned(), code, comments }
    }

    /// The words of the code.
    pub fn words(&self) -> Vec<Word<'_>> {
        words(&self.code)
    }

    /// Every path the code's `use` declarations name, groups taken apart, with its line.
    pub fn uses(&self) -> Vec<(String, usize)> {
        let words = self.words();
        let mut found = Vec::new();
        for (index, word) in words.iter().enumerate() {
            if word.text == "use" {
                let mut rest = words[index + 1..].iter();
                use_tree("", &mut rest, &mut found);
            }
        }
        found
    }

    /// The `//!` paragraph at the top as one line; empty if the file begins with anything else.
    pub fn introduction(&self) -> String {
        let lines = self.text.lines().map_while(|line| line.strip_prefix("//!"));
        lines.map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
    }

    /// Each line of the examples in the documentation, which are compiled as tests, with its number.
    pub fn examples(&self) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        let mut is_inside = false;
        for (index, line) in self.comments.lines().enumerate() {
            let line = line.trim_start();
            match line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) {
                Some(text) if text.trim_start().starts_with("```") => is_inside = !is_inside,
                Some(text) if is_inside => found.push((index + 1, text)),
                Some(_) => {}
                None => is_inside = false,
            }
        }
        found
    }

    /// The name of the file without folders and without `.rs`.
    pub fn stem(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.strip_suffix(".rs").unwrap_or(name)
    }
}

fn words(code: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = if is_name(first) {
                rest.find(|c| !is_name(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            words.push(Word { text: &rest[..length], line: index + 1 });
            rest = rest[length..].trim_start();
        }
    }
    words
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads one tree of a `use` declaration up to its `,`, `}` or `;`, which it leaves read.
/// Returns true if that was a comma, after which another tree of the same group may follow.
fn use_tree(
    prefix: &str,
    words: &mut std::slice::Iter<'_, Word<'_>>,
    found: &mut Vec<(String, usize)>,
) -> bool {
    let mut path = prefix.to_owned();
    let mut line = 0;
    let mut is_group = false;
    for word in words.by_ref() {
        line = word.line;
        match word.text {
            "{" => {
                is_group = true;
                break;
            }
            "," | "}" | ";" => {
                found.push((path, line));
                return word.text == ",";
            }
            text => path.push_str(text),
        }
    }
    if is_group {
        while use_tree(&path, words, found) {}
        return words.next().is_some_and(|word| word.text == ",");
    }
    found.push((path, line));
    false
}

/// What each character belongs to.
fn parts(text: &[char]) -> Vec<Part> {
    let mut parts = vec![Part::Code; text.len()];
    let mut at = 0;
    while at < text.len() {
        let (part, end) = match text[at] {
            '/' if text.get(at + 1) == Some(&'/') => (Part::Comment, line_end(text, at)),
            '/' if text.get(at + 1) == Some(&'*') => (Part::Comment, block_comment_end(text, at)),
            '"' => (Part::Literal, string_end(text, at)),
            '\'' => match character_end(text, at) {
                Some(end) => (Part::Literal, end),
                None => (Part::Code, at + 1),
            },
            c if is_name(c) => match raw_string_end(text, at) {
                Some(end) => (Part::Literal, end),
                None => (Part::Code, name_end(text, at)),
            },
            _ => (Part::Code, at + 1),
        };
        parts[at..end].fill(part);
        at = end;
    }
    parts
}

fn line_end(text: &[char], start: usize) -> usize {
    text[start..].iter().position(|c| *c == '\n').map_or(text.len(), |length| start + length)
}

fn name_end(text: &[char], start: usize) -> usize {
    text[start..].iter().position(|c| !is_name(*c)).map_or(text.len(), |length| start + length)
}

fn block_comment_end(text: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn string_end(text: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `None` for a lifetime.
fn character_end(text: &[char], start: usize) -> Option<usize> {
    match (text.get(start + 1)?, text.get(start + 2)?) {
        ('\\', _) => text[start + 3..].iter().position(|c| *c == '\'').map(|length| start + length + 4),
        (_, '\'') => Some(start + 3),
        _ => None,
    }
}

/// `None` if the name at `start` is not the prefix of a raw string.
fn raw_string_end(text: &[char], start: usize) -> Option<usize> {
    let end = name_end(text, start);
    let prefix: String = text[start..end].iter().collect();
    if !matches!(prefix.as_str(), "r" | "br" | "cr") {
        return None;
    }
    let hashes = text[end..].iter().take_while(|c| **c == '#').count();
    if text.get(end + hashes) != Some(&'"') {
        return None;
    }
    let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = end + hashes + 1;
    let length = text[body..].windows(closing.len()).position(|window| window == closing);
    Some(length.map_or(text.len(), |length| body + length + closing.len()))
}
