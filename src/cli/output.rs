//! `--output`: a file, a folder, a pattern of names or stdout; and the text that is safe in a name.
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The bytes of a name's part: long prompts stay under every file system's 255.
const SLUG_BYTES: usize = 80;

/// Where the user wants the pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    File(PathBuf),
    Folder(PathBuf),
    Pattern(Pattern),
}

/// A path with fields in braces, which each picture fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field),
}

/// What a pattern can tell of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Index,
    Seed,
    Prompt,
    Model,
    Scheduler,
    Steps,
}

const FIELDS: [(&str, Field); 6] = [
    ("index", Field::Index),
    ("seed", Field::Seed),
    ("prompt", Field::Prompt),
    ("model", Field::Model),
    ("scheduler", Field::Scheduler),
    ("steps", Field::Steps),
];

/// A picture's values of the fields.
#[derive(Clone, Debug)]
pub struct About<'a> {
    /// Counted from 1.
    pub index: usize,
    pub seed: u64,
    pub prompt: &'a str,
    pub model: &'a str,
    pub scheduler: &'a str,
    pub steps: usize,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdout);
        }
        let path = Path::new(text);
        let is_png = path
            .extension()
            .is_some_and(|ext| ext.eq_ignore_ascii_case("png"));
        let is_folder = text.ends_with(std::path::is_separator) || (!is_png && path.is_dir());
        match (is_folder, is_png) {
            (true, _) => Ok(Self::Folder(path.to_owned())),
            (_, false) => Err(
                "pictures are PNG files; give a name that ends in .png, a folder that ends in /, or - for stdout"
                    .to_owned(),
            ),
            _ if text.contains('{') => Pattern::parse(text).map(Self::Pattern),
            _ => Ok(Self::File(path.to_owned())),
        }
    }
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Self, String> {
        let known = || FIELDS.map(|(name, _)| format!("{{{name}}}")).join(" ");
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err(format!("a {{ has no }}; the fields are {}", known()));
            };
            let field = FIELDS.iter().find(|(known, _)| *known == name);
            let Some((_, field)) = field else {
                return Err(format!(
                    "there is no field {{{name}}}; there are {}",
                    known()
                ));
            };
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Field(*field));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// The path of an animation, by its extension; it may have no field.
    pub fn of_animation(text: &str) -> Result<Self, String> {
        let extension = Path::new(text).extension().unwrap_or_default();
        let known = ["png", "apng", "gif"];
        if !known
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
        {
            return Err(
                "animations are PNG or GIF files; give a name that ends in .png or .gif".to_owned(),
            );
        }
        Self::parse(text)
    }

    /// The path, where no field is in it.
    pub fn as_plain(&self) -> Option<PathBuf> {
        fn text(piece: &Piece) -> Option<&str> {
            match piece {
                Piece::Text(text) => Some(text),
                Piece::Field(_) => None,
            }
        }
        let pieces: Option<String> = self.0.iter().map(text).collect();
        pieces.map(PathBuf::from)
    }

    pub fn has(&self, field: Field) -> bool {
        self.0.contains(&Piece::Field(field))
    }

    /// The path of one picture: what fills a field has no separators, dots or spaces.
    pub fn fill(&self, about: &About) -> PathBuf {
        let mut path = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => path += text,
                Piece::Field(Field::Index) => path += &format!("{:04}", about.index),
                Piece::Field(Field::Seed) => path += &about.seed.to_string(),
                Piece::Field(Field::Steps) => path += &about.steps.to_string(),
                Piece::Field(Field::Prompt) => path += &slug(about.prompt),
                Piece::Field(Field::Model) => path += &slug(about.model),
                Piece::Field(Field::Scheduler) => path += &slug(about.scheduler),
            }
        }
        path.into()
    }
}

/// A name for `subject`: letters and digits of any script, in lower case, with single hyphens for all that is between them.
pub fn slug(subject: &str) -> String {
    let mut slug = String::new();
    for word in subject
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        let word = word.to_lowercase();
        let hyphen = usize::from(!slug.is_empty());
        if slug.len() + hyphen + word.len() > SLUG_BYTES {
            if slug.is_empty() {
                // One endless word, or a script without spaces.
                slug.extend(word.chars().scan(0, |bytes, c| {
                    *bytes += c.len_utf8();
                    (*bytes <= SLUG_BYTES).then_some(c)
                }));
            }
            break;
        }
        if hyphen == 1 {
            slug.push('-');
        }
        slug.push_str(&word);
    }
    if slug.is_empty() {
        "picture".to_owned()
    } else {
        slug
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn about(prompt: &str) -> About<'_> {
        About {
            index: 3,
            seed: 7,
            prompt,
            model: "tiny-sd",
            scheduler: "dpmpp-2m",
            steps: 20,
        }
    }

    #[test]
    fn an_output_is_stdout_a_file_a_folder_or_a_pattern() {
        assert_eq!("-".parse(), Ok(Output::Stdout));
        assert_eq!("a.png".parse(), Ok(Output::File("a.png".into())));
        assert_eq!("new/".parse(), Ok(Output::Folder("new/".into())));
        assert_eq!(".".parse(), Ok(Output::Folder(".".into())));
        assert!(matches!("{seed}.PNG".parse(), Ok(Output::Pattern(_))));
        for bad in [
            "a.jpg",
            "a",
            "",
            ".png",
            "{seed}",
            "{sead}.png",
            "{seed.png",
        ] {
            assert!(bad.parse::<Output>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pattern_takes_every_field() -> Result<(), String> {
        let pattern = Pattern::parse("{model}/{index}-{prompt}-{seed}-{scheduler}-{steps}.png")?;
        assert_eq!(
            pattern.fill(&about("A cat!")),
            Path::new("tiny-sd/0003-a-cat-7-dpmpp-2m-20.png")
        );
        assert!(pattern.has(Field::Seed));
        assert!(!Pattern::parse("{index}.png")?.has(Field::Seed));
        Ok(())
    }

    #[test]
    fn an_animation_is_a_png_or_a_gif_of_any_name() -> Result<(), String> {
        for good in ["a.png", "x/a.GIF", "{index}.apng"] {
            Pattern::of_animation(good)?;
        }
        for bad in ["a", "", ".gif", "a.webp", "{indx}.gif", "a/"] {
            assert!(Pattern::of_animation(bad).is_err(), "{bad}");
        }
        let plain = |text| Pattern::of_animation(text).map(|pattern| pattern.as_plain());
        assert_eq!(plain("x/a.gif")?, Some("x/a.gif".into()));
        assert_eq!(plain("{seed}.gif")?, None);
        Ok(())
    }

    #[test]
    fn a_prompt_becomes_a_name_that_every_shell_takes() {
        assert_eq!(slug("Astronaut riding a horse"), "astronaut-riding-a-horse");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("  -rf *  "), "rf");
        assert_eq!(slug("Füchse im 雪"), "füchse-im-雪");
        assert_eq!(slug(""), "picture");
        assert_eq!(slug("🦊!\0\n"), "picture");
    }

    #[test]
    fn long_prompts_are_cut_between_words_and_endless_words_between_letters() {
        // 13 words of 6 bytes with their hyphens, less the last hyphen.
        assert_eq!(slug(&"horse ".repeat(50)), ["horse"; 13].join("-"));
        assert_eq!(slug(&"馬".repeat(50)), "馬".repeat(26));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_text_makes_a_short_name_of_letters_digits_and_hyphens(text in any::<String>()) {
            let slug = slug(&text);
            prop_assert!(!slug.is_empty() && slug.len() <= SLUG_BYTES);
            prop_assert!(slug.split('-').all(|word| !word.is_empty()), "{}", slug);
        }

        #[test]
        fn what_fills_a_pattern_never_leaves_its_folder(text in any::<String>()) {
            let pattern = Pattern::parse("out/{prompt}-{seed}.png").expect("the fields are known");
            let path = pattern.fill(&about(&text));
            prop_assert_eq!(path.parent(), Some(Path::new("out")));
        }
    }
}
