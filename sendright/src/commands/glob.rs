//! Patterns for names, as `find -name` has them: `*`, `?`, `[…]`, and a backslash before what is meant
//! literally. On bytes, since names are.
//!
//! Pure. It takes time proportional to pattern times name, whatever the pattern.

/// Whether a name is like a pattern, from end to end.
pub fn is_like(name: &[u8], pattern: &[u8]) -> bool {
    let (mut at, mut of) = (0, 0);
    // Where to go on if this fails: after the last `*`, with one byte more taken by it.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match pattern.get(of) {
            Some(b'*') => {
                of += 1;
                retry = Some((at, of));
                continue;
            }
            None if at == name.len() => return true,
            Some(_) if at < name.len() => {
                if let Some(next) = matches_one(name[at], pattern, of) {
                    (at, of) = (at + 1, next);
                    continue;
                }
            }
            _ => {}
        }
        match retry {
            Some((from, after)) if from < name.len() => {
                retry = Some((from + 1, after));
                (at, of) = (from + 1, after);
            }
            _ => return false,
        }
    }
}

/// Where the pattern goes on if what stands at `of` stands for this byte.
fn matches_one(byte: u8, pattern: &[u8], of: usize) -> Option<usize> {
    match pattern[of] {
        b'?' => Some(of + 1),
        b'\\' if of + 1 < pattern.len() => (pattern[of + 1] == byte).then_some(of + 2),
        b'[' => match class(byte, pattern, of) {
            Some((true, after)) => Some(after),
            Some((false, _)) => None,
            // Never closed: it stands for itself.
            None => (byte == b'[').then_some(of + 1),
        },
        literal => (literal == byte).then_some(of + 1),
    }
}

/// Whether `[…]` has this byte, and where it ends.
fn class(byte: u8, pattern: &[u8], of: usize) -> Option<(bool, usize)> {
    let mut at = of + 1;
    let is_not = matches!(pattern.get(at), Some(b'!' | b'^'));
    at += usize::from(is_not);
    let (begin, mut has) = (at, false);
    loop {
        let low = match *pattern.get(at)? {
            b']' if at > begin => return Some((has != is_not, at + 1)),
            b'\\' => {
                at += 1;
                *pattern.get(at)?
            }
            low => low,
        };
        at += 1;
        let high = match (pattern.get(at), pattern.get(at + 1)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                at += 2;
                high
            }
            _ => low,
        };
        has |= (low..=high).contains(&byte);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn patterns_mean_what_find_says_they_mean() {
        let names: [&[u8]; 12] = [
            b"a",
            b"ab",
            b"abc",
            b"a.rs",
            b".hidden",
            b"[x]",
            b"a*b",
            b"x]y",
            b"-",
            b"\xff\xfe",
            b"aXbXc",
            b"b",
        ];
        let patterns = [
            "*", "a*", "*c", "?", "??", "a?c", "[ab]", "[!ab]", "[^ab]*", "[a-c]*", "[]x]*", "[x", "\\[x]",
            "*.rs", "a\\*b", "*X*X*", "[!]]*", "", "[a-]", "\\", ".*",
        ];
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
        }
        for pattern in patterns {
            let found = Command::new("find")
                .args([".", "-mindepth", "1", "-name", pattern, "-printf", "%f\\0"])
                .current_dir(folder.path())
                .env("LC_ALL", "C")
                .output();
            let Ok(found) = found else { return };
            let mut theirs: Vec<&[u8]> =
                found.stdout.split(|&byte| byte == 0).filter(|n| !n.is_empty()).collect();
            let mut ours: Vec<&[u8]> =
                names.into_iter().filter(|name| is_like(name, pattern.as_bytes())).collect();
            theirs.sort();
            ours.sort();
            assert_eq!(ours, theirs, "{pattern}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = b"*a".repeat(60);
        assert!(!is_like(&[b'a'; 59], &pattern));
        assert!(is_like(&[b'a'; 255], &pattern));
        assert!(!is_like(&[&[b'a'; 254][..], b"b"].concat(), &pattern));
    }
}
