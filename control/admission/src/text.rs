//! Escapes and cuts texts from outside. Pure.

use std::fmt::{self, Write as _};

use crate::figures::LOGGED_CHARACTERS;

/// A text from outside, in a form for logs: escaped, and no longer than [`LOGGED_CHARACTERS`].
#[derive(Clone, Copy)]
pub struct Outside<'a>(pub &'a str);

impl fmt::Display for Outside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        for character in characters.by_ref().take(LOGGED_CHARACTERS) {
            for escaped in character.escape_debug() {
                f.write_char(escaped)?;
            }
        }
        let left = characters.as_str().len();
        if left > 0 { write!(f, "… ({left} more bytes)") } else { Ok(()) }
    }
}

impl fmt::Debug for Outside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The mark where a text was cut.
const CUT: &str = "…";

/// Cuts a text to at most `bytes`, at a character boundary, and marks the cut. Returns whether it
/// was cut.
pub fn clip(text: &mut String, bytes: usize) -> bool {
    if text.len() <= bytes {
        return false;
    }
    text.truncate(text.floor_char_boundary(bytes.saturating_sub(CUT.len())));
    if text.len() + CUT.len() <= bytes {
        text.push_str(CUT);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_logged_text_is_escaped_and_short() {
        let shown = Outside("a\nb\x1b[31m\u{202e}\"").to_string();
        assert_eq!(shown, r#"a\nb\u{1b}[31m\u{202e}\""#);
        let long = Outside(&"x".repeat(4 << 20)).to_string();
        assert!(long.len() < 300 && long.ends_with("(4194048 more bytes)"), "shown: {long}");
    }

    proptest! {
        #[test]
        fn a_cut_text_is_within_its_bound(mut text in ".{0,40}", bytes in 0_usize..50) {
            let before = text.clone();
            let cut = clip(&mut text, bytes);
            prop_assert!(text.len() <= bytes);
            prop_assert_eq!(cut, before.len() > bytes);
            prop_assert!(cut || text == before);
        }
    }
}
