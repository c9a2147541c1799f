//! PNGs from anyone: chunks that are almost right, most of them with the right hash.
use super::harness::fuzz;
use diffuse::engine::png;
use image::RgbImage;
use proptest::prelude::*;
use proptest::sample::Index;

/// A chunk: its kind and its data.
type Chunk = ([u8; 4], Vec<u8>);

/// CRC-32 of ISO 3309, as the PNG specification gives it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn the_hash_of_chunks_is_that_of_the_specification() {
    assert_eq!(crc(b"IEND"), 0xae42_6082);
}

const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";

fn chunks(file: &[u8]) -> Vec<Chunk> {
    let mut rest = &file[8..];
    let mut chunks = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (kind, after) = after.split_first_chunk::<4>().unwrap();
        let (data, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        chunks.push((*kind, data.to_vec()));
        rest = &after[4..];
    }
    chunks
}

fn small() -> RgbImage {
    RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 200]))
}

/// The corpus: our own file, one with every other chunk, and an animation.
fn seeds() -> Vec<Vec<Chunk>> {
    let settings = r#"{"command": "txt2img", "settings": {"prompt": "x"}}"#;
    let texts = [
        ("parameters", "狐".to_owned()),
        ("diffuse", settings.to_owned()),
    ];
    let ours = png::encode(&small(), &texts).unwrap();
    let mut rich = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut rich, 5, 3);
    encoder.set_color(::png::ColorType::Indexed);
    encoder.set_palette(vec![9; 12]);
    encoder.set_trns(vec![1, 2, 3]);
    encoder
        .add_ztxt_chunk("diffuse".into(), "{}".repeat(99))
        .unwrap();
    let mut packed = ::png::text_metadata::ITXtChunk::new("diffuse", settings);
    packed.compressed = true;
    packed.compress_text().unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_text_chunk(&packed).unwrap();
    writer
        .write_chunk(::png::chunk::gAMA, &[0, 0, 177, 143])
        .unwrap();
    writer.write_chunk(::png::chunk::pHYs, &[0; 9]).unwrap();
    writer.write_image_data(&[1; 15]).unwrap();
    writer.finish().unwrap();
    let film = diffuse::engine::animate::png(&[small(), small()], None).unwrap();
    [ours, rich, film].map(|file| chunks(&file)).to_vec()
}

#[derive(Clone, Debug)]
enum Damage {
    Remove(Index),
    Double(Index),
    Swap(Index, Index),
    Insert(Index, Chunk),
    Kind(Index, [u8; 4]),
    /// A byte of a chunk's data.
    Byte(Index, Index, u8),
    /// A field of the header: width, height, depth, colour, compression, filter, interlace.
    Header(usize, u32),
    Shorten(Index, Index),
    Lengthen(Index, Vec<u8>),
    /// The chunk claims another length.
    Claim(Index, u32),
    /// The chunk's hash is wrong.
    Hash(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let kind = || {
        prop::sample::select(vec![
            *b"tEXt", *b"iTXt", *b"zTXt", *b"IHDR", *b"PLTE", *b"tRNS", *b"IDAT", *b"IEND",
            *b"acTL", *b"fcTL", *b"fdAT", *b"iCCP", *b"eXIf", *b"sRGB", *b"cICP", *b"mDCV",
            *b"gAMA", *b"XXXX", *b"xxxx",
        ])
    };
    let text = prop::collection::vec(
        prop::sample::select(vec![
            &b"diffuse"[..],
            b"\0",
            b"\0\0",
            b"\0\x01\0",
            b"x\x9c",
            b"\xff",
            b"{}",
            b"parameters",
            b"e",
            b"x\x9c\x03\0\0\0\0\x01",
        ]),
        0..8,
    );
    let data = prop_oneof![
        text.prop_map(|parts| parts.concat()),
        prop::collection::vec(any::<u8>(), 0..30)
    ];
    let fields = [
        0u32,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        16,
        255,
        1 << 14,
        1 << 24,
        (1 << 31) - 1,
        1 << 31,
        u32::MAX,
    ];
    prop_oneof![
        1 => at().prop_map(Damage::Remove),
        1 => at().prop_map(Damage::Double),
        1 => (at(), at()).prop_map(|(a, b)| Damage::Swap(a, b)),
        3 => (at(), (kind(), data)).prop_map(|(at, chunk)| Damage::Insert(at, chunk)),
        1 => (at(), kind()).prop_map(|(at, kind)| Damage::Kind(at, kind)),
        5 => (at(), at(), any::<u8>()).prop_map(|(chunk, at, byte)| Damage::Byte(chunk, at, byte)),
        3 => (0..7usize, prop::sample::select(fields.to_vec())).prop_map(|(field, value)| Damage::Header(field, value)),
        1 => (at(), at()).prop_map(|(chunk, at)| Damage::Shorten(chunk, at)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, more)| Damage::Lengthen(at, more)),
        1 => (at(), prop::sample::select(fields.to_vec())).prop_map(|(at, claim)| Damage::Claim(at, claim)),
        1 => at().prop_map(Damage::Hash),
    ]
}

fn damaged(seed: &[Chunk], damages: &[Damage]) -> Vec<u8> {
    let mut chunks = seed.to_vec();
    let (mut claims, mut hashes) = (Vec::new(), Vec::new());
    for damage in damages {
        if chunks.is_empty() {
            break;
        }
        let count = chunks.len();
        match damage {
            Damage::Remove(at) => drop(chunks.remove(at.index(count))),
            Damage::Double(at) => {
                let at = at.index(count);
                chunks.insert(at, chunks[at].clone());
            }
            Damage::Swap(a, b) => chunks.swap(a.index(count), b.index(count)),
            Damage::Insert(at, chunk) => chunks.insert(at.index(count), chunk.clone()),
            Damage::Kind(at, kind) => chunks[at.index(count)].0 = *kind,
            Damage::Byte(chunk, at, byte) => {
                let data = &mut chunks[chunk.index(count)].1;
                if !data.is_empty() {
                    let at = at.index(data.len());
                    data[at] = *byte;
                }
            }
            Damage::Header(field, value) => {
                let Some((_, data)) = chunks
                    .iter_mut()
                    .find(|(kind, data)| kind == b"IHDR" && data.len() == 13)
                else {
                    continue;
                };
                match field {
                    0 | 1 => data[4 * field..][..4].copy_from_slice(&value.to_be_bytes()),
                    _ => data[6 + field] = *value as u8,
                }
            }
            Damage::Shorten(chunk, at) => {
                let data = &mut chunks[chunk.index(count)].1;
                data.truncate(at.index(data.len() + 1));
            }
            Damage::Lengthen(at, more) => chunks[at.index(count)].1.extend(more),
            Damage::Claim(at, claim) => claims.push((*at, *claim)),
            Damage::Hash(at) => hashes.push(*at),
        }
    }
    let mut lies = vec![(None, 0); chunks.len()];
    if !lies.is_empty() {
        let count = lies.len();
        claims
            .iter()
            .for_each(|(at, claim)| lies[at.index(count)].0 = Some(*claim));
        hashes.iter().for_each(|at| lies[at.index(count)].1 = 1);
    }
    let mut file = SIGNATURE.to_vec();
    for ((kind, data), (claim, flip)) in std::iter::zip(&chunks, lies) {
        file.extend(claim.unwrap_or(data.len() as u32).to_be_bytes());
        let hashed = [&kind[..], data].concat();
        file.extend(&hashed);
        file.extend((crc(&hashed) ^ flip).to_be_bytes());
    }
    file
}

#[test]
fn no_chunks_of_a_picture_panic() {
    let seeds = seeds();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let inputs = (0..seeds.len(), prop::collection::vec(damage(), 1..4));
    fuzz(256, inputs, "text and pixels", |(seed, damages)| {
        std::fs::write(&path, damaged(&seeds[*seed], damages)).unwrap();
        let text = png::read_text(&path, "diffuse");
        let pixels = png::read_pixels(&path, &small());
        match (text, pixels) {
            (Ok(Some(text)), pixels) => {
                assert!(text.len() <= 8 << 20);
                Ok(if pixels.is_ok() {
                    "text and pixels"
                } else {
                    "text"
                })
            }
            (Ok(None), Ok(_)) => Ok("pixels"),
            (Err(err), Ok(_)) => Err(err.context("pixels")),
            (Err(err), Err(_)) | (Ok(None), Err(err)) => Err(err),
        }
    });
}
