//! Weights in a prompt, as AUTOMATIC1111's web UI writes them: `(word)` is 1.1, `((word))` 1.21, `[word]` 1 / 1.1,
//! `(word:1.3)` 1.3, and `\(` is a parenthesis.
//!
//! What stands inside is multiplied with what stands around it. A parenthesis without its pair weighs to the end of the prompt, a
//! backslash before anything else is nothing, and neighbours of one weight are one text.

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;

/// The pieces of a prompt and their weights, no two neighbours of one weight. A prompt without any parenthesis is one piece.
pub fn parse(prompt: &str) -> Vec<(String, f32)> {
    let mut joined: Vec<(String, f64)> = Vec::new();
    for (text, weight) in pieces(prompt) {
        match joined.last_mut() {
            Some(last) if last.1 == weight => last.0 += &text,
            _ => joined.push((text, weight)),
        }
    }
    let joined = joined.into_iter();
    joined.map(|(text, weight)| (text, weight as f32)).collect()
}

fn pieces(prompt: &str) -> Vec<(String, f64)> {
    let mut pieces: Vec<(String, f64)> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut piece = String::new();
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\\' => match after.chars().next() {
                Some(escaped @ ('(' | ')' | '[' | ']' | '\\')) => {
                    piece.push(escaped);
                    &after[escaped.len_utf8()..]
                }
                _ => after,
            },
            '(' | '[' => {
                flush(&mut pieces, &mut piece);
                let open = if c == '(' { &mut round } else { &mut square };
                open.push(pieces.len());
                after
            }
            ':' if !round.is_empty() => match number(after) {
                Some((weight, after)) => {
                    flush(&mut pieces, &mut piece);
                    weigh(&mut pieces, round.pop(), weight);
                    after
                }
                None => {
                    piece.push(c);
                    after
                }
            },
            ')' if !round.is_empty() => {
                flush(&mut pieces, &mut piece);
                weigh(&mut pieces, round.pop(), ROUND);
                after
            }
            ']' if !square.is_empty() => {
                flush(&mut pieces, &mut piece);
                weigh(&mut pieces, square.pop(), SQUARE);
                after
            }
            _ => {
                piece.push(c);
                after
            }
        };
    }
    flush(&mut pieces, &mut piece);
    // What is still open.
    for first in round {
        weigh(&mut pieces, Some(first), ROUND);
    }
    for first in square {
        weigh(&mut pieces, Some(first), SQUARE);
    }
    pieces
}

fn flush(pieces: &mut Vec<(String, f64)>, piece: &mut String) {
    if !piece.is_empty() {
        pieces.push((std::mem::take(piece), 1.0));
    }
}

fn weigh(pieces: &mut [(String, f64)], first: Option<usize>, weight: f64) {
    for piece in pieces.iter_mut().skip(first.unwrap_or(usize::MAX)) {
        piece.1 *= weight;
    }
}

/// A number and the parenthesis behind it: its value, and what follows.
fn number(text: &str) -> Option<(f64, &str)> {
    let (number, after) = text.split_once(')')?;
    let number = number.trim();
    let plain = number
        .trim_start_matches(['+', '-'])
        .chars()
        .all(|c| c.is_ascii_digit() || c == '.');
    let weight: f64 = number.parse().ok().filter(|_| plain)?;
    Some((weight, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(prompt: &str, wanted: &[(&str, f32)]) {
        let found = parse(prompt);
        let texts: Vec<_> = found.iter().map(|(text, _)| text.as_str()).collect();
        let wanted_texts: Vec<_> = wanted.iter().map(|(text, _)| *text).collect();
        assert_eq!(texts, wanted_texts, "{prompt}");
        for ((_, weight), (_, wanted)) in found.iter().zip(wanted) {
            assert!((weight - wanted).abs() < 1e-6, "{prompt}: {weight}");
        }
    }

    // The examples of the web UI's own parser (modules/prompt_parser.py).
    #[test]
    fn parentheses_weigh_as_in_the_web_ui() {
        check("normal text", &[("normal text", 1.0)]);
        check(
            "an (important) word",
            &[("an ", 1.0), ("important", 1.1), (" word", 1.0)],
        );
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check("pho(tograph:1.0) of", &[("photograph of", 1.0)]);
        check(r"photo\graph\", &[("photograph", 1.0)]);
        check(r"(a\\b)", &[(r"a\b", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn what_is_no_weight_is_text() {
        check("a ratio of 3:4", &[("a ratio of 3:4", 1.0)]);
        check("(a:b)", &[("a:b", 1.1)]);
        check("(a:inf)", &[("a:inf", 1.1)]);
        check(") and ]", &[(") and ]", 1.0)]);
        check("(cat: 1.5 )", &[("cat", 1.5)]);
        check("", &[]);
        check("()", &[]);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_and_keeps_its_letters(prompt in r"[ab\\()\[\]:.1é ]{0,40}") {
            let letters = |text: &str| text.chars().filter(|c| "abé".contains(*c)).count();
            let kept: usize = parse(&prompt).iter().map(|(text, _)| letters(text)).sum();
            prop_assert_eq!(kept, letters(&prompt));
        }
    }
}
