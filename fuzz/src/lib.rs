//! What the fuzz targets share.

use halyard_text::{StreamDecoder, Tokenizer};

/// libFuzzer's panic hook ends the process at every panic, also at those of a library that our code catches and
/// turns into errors. Without it only panics that get out of our code count.
pub fn let_panics_be_caught() {
    let _ = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
}

/// A tokenizer that was accepted must encode, and decode whole and in pieces to the same text.
pub fn round_trip(tokenizer: &Tokenizer) {
    for text in ["", "Hello, wörld! 你好 😀\n\n  12345 <s>", "\u{0}\u{301}a"] {
        for add_special in [false, true] {
            let Ok(ids) = tokenizer.encode(text, add_special) else { continue };
            let whole = tokenizer.decode(&ids, true).expect("ids that encode has given");
            let mut decoder = StreamDecoder::new(true);
            let mut pieces = String::new();
            for id in ids {
                pieces.extend(decoder.push(tokenizer, id));
                let _ = (tokenizer.token_bytes(id), tokenizer.is_special(id));
            }
            pieces.extend(decoder.finish(tokenizer));
            assert_eq!(pieces, whole);
        }
    }
    let _ = (tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_id());
}
