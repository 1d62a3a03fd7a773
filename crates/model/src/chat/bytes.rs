//! The bytes that each token stands for. A token may be part of a character, so its text alone cannot be decoded.
use super::Tokenizer;
use std::collections::HashMap;
use tokenizers::DecoderWrapper;

impl Tokenizer {
    /// The bytes of every token by its id; empty for special tokens and for ids without a token.
    pub fn token_bytes(&self) -> Vec<Vec<u8>> {
        let added = self.inner.get_added_tokens_decoder();
        let alphabet = self.inner.get_decoder().is_some_and(is_byte_level).then(byte_alphabet);
        let mut all = vec![Vec::new(); self.vocab_size()];
        for (token, id) in self.inner.get_vocab(true) {
            let Some(place) = all.get_mut(id as usize) else { continue };
            *place = match added.get(&id) {
                Some(_) if self.is_special(id) => Vec::new(),
                Some(added) => added.content.clone().into_bytes(),
                None => match &alphabet {
                    // A character outside the alphabet is no token that this decoder could read.
                    Some(alphabet) => token.chars().filter_map(|c| alphabet.get(&c).copied()).collect(),
                    None => sentence_piece(&token),
                },
            };
        }
        all
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// GPT-2's spelling of bytes as characters: those that print stand for themselves, the others for 256 and on.
fn byte_alphabet() -> HashMap<char, u8> {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    let spell = |byte: u8| {
        let code = if prints(byte) {
            u32::from(byte)
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).map(|c| (c, byte))
    };
    (0..=u8::MAX).filter_map(spell).collect()
}

/// `▁` is a space, `<0xE2>` a byte.
fn sentence_piece(token: &str) -> Vec<u8> {
    let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
    match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => vec![byte],
        None => token.replace('\u{2581}', " ").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_spelling() {
        let alphabet = byte_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(
            (alphabet.get(&'A'), alphabet.get(&'Ġ'), alphabet.get(&'Ċ')),
            (Some(&b'A'), Some(&b' '), Some(&b'\n'))
        );
    }

    #[test]
    fn sentence_pieces_are_text_or_one_byte() {
        assert_eq!(sentence_piece("▁the"), b" the");
        assert_eq!(sentence_piece("<0xE2>"), [0xe2]);
        assert_eq!(sentence_piece("<0xZZ>"), b"<0xZZ>");
    }
}
