//! Parses a call's path as the engine would. Pure.
//!
//! Purpose: the engine decodes a path before it routes it, and takes any `v` with digits and dots
//! for a version. Routing here by other rules would let `/v1.41/s%77arm/init` past mesh and reach
//! the engine's own swarm.
//!
//! Invariant: a path that can be parsed in two ways is refused, never guessed at.

use hyper::Uri;
use hyper::http::uri::PathAndQuery;

use super::error::ApiError;
use super::filters::percent_encode;

/// The decoded parts of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallPath {
    version: Option<String>,
    parts: Vec<String>,
    /// Whether some of it came percent-encoded.
    encoded: bool,
}

impl CallPath {
    /// Parses the path of `uri`.
    ///
    /// # Errors
    /// [`ApiError::Ambiguous`]: it has parts such as `..`, control characters, or an invalid
    /// encoding.
    pub(super) fn of(uri: &Uri) -> Result<Self, ApiError> {
        let decoded =
            decode(uri.path()).ok_or(ApiError::Ambiguous("it has a percent sign that encodes nothing"))?;
        if decoded.chars().any(char::is_control) {
            return Err(ApiError::Ambiguous("it has control characters"));
        }
        let mut parts: Vec<String> =
            decoded.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if parts.iter().any(|part| part == "." || part == "..") {
            return Err(ApiError::Ambiguous("it has parts that lead elsewhere"));
        }
        let version = parts.first().is_some_and(|first| is_version(first)).then(|| parts.remove(0));
        Ok(Self { version, parts, encoded: uri.path().contains('%') })
    }

    /// The parts behind the version.
    pub(super) fn parts(&self) -> Vec<&str> {
        self.parts.iter().map(String::as_str).collect()
    }

    /// `uri` with its path in canonical spelling; `None` if it has that already.
    pub(super) fn respelled(&self, uri: &Uri) -> Option<Uri> {
        if !self.encoded {
            return None;
        }
        let mut text = String::new();
        for part in self.version.iter().chain(&self.parts) {
            text.push('/');
            text.push_str(&percent_encode(part));
        }
        if let Some(query) = uri.query() {
            text.push('?');
            text.push_str(query);
        }
        Some(Uri::from(PathAndQuery::try_from(text).ok()?))
    }
}

/// Whether the engine takes a part for a version: `v1.41`, but also `v1`, `v1.41.0`, `v.`.
fn is_version(part: &str) -> bool {
    part.strip_prefix('v').is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    })
}

/// Decodes percent-encoding; `None` if it is invalid, or the result is not UTF-8.
fn decode(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(path: &str) -> Option<String> {
        CallPath::of(&path.parse().unwrap()).ok().map(|path| path.parts().join("/"))
    }

    #[test]
    fn every_spelling_of_a_path_is_read_as_the_engine_reads_it() {
        for spelling in [
            "/swarm/init",
            "/v1.41/swarm/init",
            "/v1.41.0/swarm/init",
            "/v1/swarm/init",
            "/v./swarm/init",
            "/v1.41/s%77arm/init",
            "/v1.41%2fswarm/init",
            "/v1.41%2Fswarm%2Finit",
            "/%76%31.41/swarm/init",
            "//v1.41//swarm//init/",
        ] {
            assert_eq!(read(spelling).as_deref(), Some("swarm/init"), "{spelling}");
        }
        assert_eq!(read("/vx.1/swarm").as_deref(), Some("vx.1/swarm"), "no version");
        assert_eq!(read("/v1.41/v1.41/swarm").as_deref(), Some("v1.41/swarm"), "one version is taken off");
        assert_eq!(
            read("/%2573warm/init").as_deref(),
            Some("%73warm/init"),
            "decoded once, as by the engine"
        );
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for path in [
            "/containers/../swarm/init",
            "/containers/%2e%2e/swarm/init",
            "/./swarm",
            "/swarm%",
            "/swarm%4",
            "/swarm%zz",
            "/swarm%00",
            "/swarm%0a/init",
            "/%ff",
        ] {
            assert_eq!(read(path), None, "{path}");
        }
    }

    #[test]
    fn an_encoded_path_is_spelled_out() {
        let respelled = |text: &str| {
            let uri: Uri = text.parse().unwrap();
            CallPath::of(&uri).unwrap().respelled(&uri).map(|uri| uri.to_string())
        };
        assert_eq!(respelled("/v1.41/s%77arm/init?a=%2f").as_deref(), Some("/v1.41/swarm/init?a=%2f"));
        assert_eq!(respelled("/v1.41/services/a%20b").as_deref(), Some("/v1.41/services/a%20b"));
        assert_eq!(respelled("/v1.41/swarm/init"), None);
    }

    proptest! {
        /// However a path is encoded, it is parsed the same.
        #[test]
        fn encoding_changes_nothing(mask in prop::collection::vec(any::<bool>(), 20)) {
            let path = "/v1.41/swarm/init";
            let encode = |(character, encode): (char, &bool)| {
                if *encode && character != '/' { format!("%{:02x}", u32::from(character)) } else { character.to_string() }
            };
            let spelled: String = path.chars().zip(mask.iter().cycle()).map(encode).collect();
            let seen = read(&spelled);
            prop_assert_eq!(seen.as_deref(), Some("swarm/init"));
        }
    }
}
