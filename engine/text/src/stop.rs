//! Stop strings over a stream of text.

/// Finds the first stop string in text that arrives in pieces, and never lets a part of one through.
///
/// The match is the one that *ends* first; of several that end together, the longest. How the text is cut into
/// pieces makes no difference.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    include: bool,
    /// Text that may be the beginning of a stop string: as long as the longest such beginning.
    held: String,
    done: bool,
}

/// A stop string with Knuth, Morris and Pratt's failure table, over bytes.
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    /// `failure[i]`: the longest proper prefix of `text` that ends at byte `i`.
    failure: Vec<usize>,
    /// How many bytes of `text` the stream ends with.
    matched: usize,
}

/// What came out of one piece of text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that may be shown now; may be empty.
    pub text: String,
    /// The stop string that was found: generation ends here.
    pub matched: Option<String>,
}

/// An empty stop string would match everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stop string must not be empty")]
pub struct EmptyStopString;

impl StopMatcher {
    /// With `include_stop_str_in_output` the found stop string is part of the text, else the text ends before it.
    ///
    /// # Errors
    /// One of `stops` is empty.
    pub fn new<S: Into<String>>(
        stops: impl IntoIterator<Item = S>,
        include_stop_str_in_output: bool,
    ) -> Result<Self, EmptyStopString> {
        let mut patterns = Vec::new();
        for stop in stops {
            let text: String = stop.into();
            if text.is_empty() {
                return Err(EmptyStopString);
            }
            patterns.push(Pattern::new(text));
        }
        Ok(Self { patterns, include: include_stop_str_in_output, held: String::new(), done: false })
    }

    /// Takes the next piece of text. After a match nothing more comes out.
    pub fn push(&mut self, delta: &str) -> StopOutput {
        if self.done {
            return StopOutput::default();
        }
        if self.patterns.is_empty() {
            return StopOutput { text: delta.to_owned(), matched: None };
        }
        for (index, &byte) in delta.as_bytes().iter().enumerate() {
            let mut found: Option<&Pattern> = None;
            for pattern in &mut self.patterns {
                let complete = pattern.advance(byte);
                if complete && found.is_none_or(|best| pattern.text.len() > best.text.len()) {
                    found = Some(pattern);
                }
            }
            if let Some(pattern) = found {
                let stop = pattern.text.clone();
                self.done = true;
                let mut text = std::mem::take(&mut self.held);
                text.push_str(&delta[..=index]);
                if !self.include {
                    // The stop string is a suffix of what has been held and what has come.
                    text.truncate(text.len() - stop.len());
                }
                return StopOutput { text, matched: Some(stop) };
            }
        }
        self.held.push_str(delta);
        let keep = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        StopOutput { text: std::mem::replace(&mut self.held, tail), matched: None }
    }

    /// The text still held back when generation ends without a match.
    pub fn finish(&mut self) -> String {
        self.done = true;
        std::mem::take(&mut self.held)
    }
}

impl Pattern {
    fn new(text: String) -> Self {
        let bytes = text.as_bytes();
        let mut failure = vec![0; bytes.len()];
        let mut length = 0;
        for i in 1..bytes.len() {
            while length > 0 && bytes[i] != bytes[length] {
                length = failure[length - 1];
            }
            length += usize::from(bytes[i] == bytes[length]);
            failure[i] = length;
        }
        Self { text, failure, matched: 0 }
    }

    /// Whether the stream, with `byte` added, ends with the whole text.
    fn advance(&mut self, byte: u8) -> bool {
        let bytes = self.text.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.failure[self.matched - 1];
        }
        self.matched += usize::from(bytes[self.matched] == byte);
        self.matched == bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: over all ends of the text, the first at which some stop string ends; the longest there.
    fn naive(text: &str, stops: &[String], include: bool) -> (String, Option<String>) {
        for end in 1..=text.len() {
            if !text.is_char_boundary(end) {
                continue;
            }
            let here = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(stop) = here.max_by_key(|stop| stop.len()) {
                let end = if include { end } else { end - stop.len() };
                return (text[..end].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    fn run(pieces: &[String], stops: &[String], include: bool) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.iter().cloned(), include).unwrap();
        let mut text = String::new();
        for piece in pieces {
            let output = matcher.push(piece);
            text.push_str(&output.text);
            if output.matched.is_some() {
                assert_eq!(matcher.push("more"), StopOutput::default());
                assert_eq!(matcher.finish(), "");
                return (text, output.matched);
            }
        }
        text.push_str(&matcher.finish());
        (text, None)
    }

    #[test]
    fn holds_back_only_beginnings() {
        let mut matcher = StopMatcher::new(["\n\nUser:"], false).unwrap();
        assert_eq!(matcher.push("Hi.\n").text, "Hi.");
        assert_eq!(matcher.push("\n").text, "");
        assert_eq!(matcher.push("\n").text, "\n");
        assert_eq!(matcher.push("Use").text, "");
        assert_eq!(matcher.push("d").text, "\n\nUsed");
        let output = matcher.push("\n\nUser: x");
        assert_eq!(output.text, "");
        assert_eq!(output.matched.as_deref(), Some("\n\nUser:"));
    }

    #[test]
    fn what_was_held_comes_at_the_end() {
        let mut matcher = StopMatcher::new(["stop"], false).unwrap();
        assert_eq!(matcher.push("no sto").text, "no ");
        assert_eq!(matcher.finish(), "sto");
    }

    #[test]
    fn empty_stop_strings_are_refused_and_no_stops_pass_all() {
        assert!(StopMatcher::new(["a", ""], false).is_err());
        let mut matcher = StopMatcher::new(Vec::<String>::new(), false).unwrap();
        assert_eq!(matcher.push("text").text, "text");
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
            include: bool,
        ) {
            let text = pieces.concat();
            prop_assert_eq!(run(&pieces, &stops, include), naive(&text, &stops, include));
        }
    }
}
