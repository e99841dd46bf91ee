//! Formats an error with all its causes in one line, for logs.

use std::error::Error;

/// An error with its causes, as `top: cause: cause of that`.
///
/// A cause that the text before it ends with is left out, because errors of some libraries (tonic,
/// hyper) repeat their source.
///
/// ```
/// use mesh_runtime::error_chain;
///
/// let error = anyhow::anyhow!("no route to host").context("connect to node-2");
/// assert_eq!(error_chain(error.as_ref()), "connect to node-2: no route to host");
/// ```
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.ends_with(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_and_repeated_ones_do_not() {
        let io = std::io::Error::other("no route to host");
        let error = anyhow::Error::new(io).context("connect to node-2").context("send the table");
        assert_eq!(error_chain(error.as_ref()), "send the table: connect to node-2: no route to host");
        let repeating = anyhow::anyhow!("reset").context("transport: reset");
        assert_eq!(error_chain(repeating.as_ref()), "transport: reset");
    }
}
