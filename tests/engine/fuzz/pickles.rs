//! Files of `torch.save`: programs that are almost right, in archives that are almost right.
use super::harness::{Model, fixture, fuzz};
use super::safetensors::read_all;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};

/// A program as its instructions.
type Program = Vec<Vec<u8>>;

/// The instructions at the start of `bytes`, up to the one that stops.
fn split(bytes: &[u8]) -> Program {
    let mut program = Program::new();
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        let number = |count: usize| {
            rest[1..=count]
                .iter()
                .rev()
                .fold(0, |n, &b| n << 8 | usize::from(b))
        };
        let line = |from: usize| from + rest[from..].iter().position(|&b| b == b'\n').unwrap() + 1;
        let length = match rest[0] {
            b'K' | b'q' | b'h' | 0x80 => 2,
            b'M' => 3,
            b'J' | b'r' | b'j' => 5,
            b'G' | 0x95 => 9,
            0x8a | 0x8c | b'U' => 2 + number(1),
            b'X' | b'T' => 5 + number(4),
            0x8d => 9 + number(8),
            b'c' => line(line(1)),
            _ => 1,
        };
        program.push(rest[..length].to_vec());
        at += length;
        if rest[0] == b'.' {
            return program;
        }
    }
}

/// What is done to a program.
#[derive(Clone, Debug)]
enum Damage {
    Remove(Index),
    Double(Index),
    Swap(Index, Index),
    Insert(Index, Vec<u8>),
    Replace(Index, Vec<u8>),
    /// One of its numbers is another.
    Number(Index, i64),
    /// One of its texts or names is another.
    Text(Index, &'static str),
    /// A run of instructions stands elsewhere too.
    Copy(Index, Index, u8),
    Byte(Index, u8),
}

/// All instructions that are known, and some that are not.
const INSTRUCTIONS: &[&[u8]] = &[
    b"]",
    b"}",
    b"(",
    b")",
    b"t",
    b"l",
    b"a",
    b"e",
    b"u",
    b"s",
    b"R",
    b"Q",
    b"b",
    b"0",
    b"1",
    b"2",
    b"N",
    b".",
    b"\x81",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x88",
    b"\x93",
    b"\x94",
    b"K\x01",
    b"K\0",
    b"q\0",
    b"h\0",
    b"h\x01",
    b"h\x02",
    b"M\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"J\0\0\0\x80",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x8a\0",
    b"G\0\0\0\0\0\0\0\0",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch\nLongStorage\n",
    b"ctorch.storage\nHalfStorage\n",
    b"cpytorch_lightning.callbacks\nX\n",
    b"cnumpy\ndtype\n",
    b"cos\nsystem\n",
    b"X\x07\0\0\0storage",
    b"X\x01\0\0\x000",
    b"X\x0a\0\0\0state_dict",
    b"\x8c\x03cpu",
    b"X\xff\xff\xff\xff",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
    b"U\x01w",
];

fn instruction() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::sample::select(INSTRUCTIONS.to_vec()).prop_map(<[u8]>::to_vec),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let numbers = [
        0,
        1,
        2,
        3,
        -1,
        24,
        255,
        65_535,
        i64::from(i32::MAX),
        i64::from(i32::MIN),
        1 << 40,
        i64::MAX,
        i64::MIN,
    ];
    let texts = [
        "",
        "0",
        "1",
        "storage",
        "cpu",
        "w",
        "f32",
        "../0",
        "state_dict",
        "x\ny",
        "torch",
        "FloatStorage",
        "ByteStorage",
        "_rebuild_tensor_v2",
        "a.b.position_ids",
    ];
    prop_oneof![
        2 => at().prop_map(Damage::Remove),
        2 => at().prop_map(Damage::Double),
        1 => (at(), at()).prop_map(|(a, b)| Damage::Swap(a, b)),
        2 => (at(), instruction()).prop_map(|(at, op)| Damage::Insert(at, op)),
        2 => (at(), instruction()).prop_map(|(at, op)| Damage::Replace(at, op)),
        5 => (at(), prop::sample::select(numbers.to_vec())).prop_map(|(at, n)| Damage::Number(at, n)),
        3 => (at(), prop::sample::select(texts.to_vec())).prop_map(|(at, text)| Damage::Text(at, text)),
        2 => (at(), at(), any::<u8>()).prop_map(|(from, to, count)| Damage::Copy(from, to, count)),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
    ]
}

fn damage_program(program: &mut Program, damages: &[Damage]) {
    for damage in damages {
        if program.is_empty() {
            return;
        }
        let length = program.len();
        // The place of one instruction of a kind.
        let of_kind = |at: &Index, kinds: &[u8]| {
            let places: Vec<usize> = (0..length)
                .filter(|&i| kinds.contains(&program[i][0]))
                .collect();
            (!places.is_empty()).then(|| places[at.index(places.len())])
        };
        match damage {
            Damage::Remove(at) => drop(program.remove(at.index(length))),
            Damage::Double(at) => {
                let at = at.index(length);
                program.insert(at, program[at].clone());
            }
            Damage::Swap(a, b) => program.swap(a.index(length), b.index(length)),
            Damage::Insert(at, op) => program.insert(at.index(length), op.clone()),
            Damage::Replace(at, op) => program[at.index(length)] = op.clone(),
            Damage::Number(at, number) => {
                let Some(at) = of_kind(at, b"JKM\x8a") else {
                    continue;
                };
                program[at] = match i32::try_from(*number) {
                    Ok(number) => [b"J".as_slice(), &number.to_le_bytes()].concat(),
                    Err(_) => [b"\x8a\x08".as_slice(), &number.to_le_bytes()].concat(),
                };
            }
            Damage::Text(at, text) => {
                let Some(at) = of_kind(at, b"XUT\x8c\x8d") else {
                    continue;
                };
                let size = (text.len() as u32).to_le_bytes();
                program[at] = [b"X".as_slice(), &size, text.as_bytes()].concat();
            }
            Damage::Copy(from, to, count) => {
                let from = from.index(length);
                let end = (from + usize::from(*count)).min(length);
                let run = program[from..end].to_vec();
                let to = to.index(length);
                program.splice(to..to, run);
            }
            Damage::Byte(at, byte) => {
                let op = &mut program[at.index(length)];
                let last = op.len() - 1;
                op[last] = *byte;
            }
        }
    }
}

/// An archive as `torch.save` writes it, as its files.
fn unzipped(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut zip = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
    let files = (0..zip.len()).map(|i| {
        let mut file = zip.by_index(i).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        (file.name().unwrap().into_owned(), bytes)
    });
    files.collect()
}

fn zipped(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in files {
        zip.start_file(name.as_str(), stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn model() -> Model {
    let config = br#"{"sample_size": 32}"#.to_vec();
    Model::new(BTreeMap::from([("unet/config.json".to_owned(), config)]))
}

const BIN: &str = "unet/diffusion_pytorch_model.bin";

/// The smallest state dict: one tensor `w` of two numbers, which a storage of two holds.
const SMALL: &[u8] = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02tQK\0K\x02\x85K\x01\x85\x89NtRs.";

fn archives() -> Vec<Vec<(String, Vec<u8>)>> {
    let small = [("a/data.pkl", SMALL), ("a/data/0", &[0; 8])];
    let small = small.map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    vec![unzipped(&fixture("bin/zip.bin")), small.to_vec()]
}

#[test]
fn no_damage_to_a_pickle_panics() {
    let (model, archives) = (model(), archives());
    let inputs = (0..archives.len(), prop::collection::vec(damage(), 1..4));
    fuzz(256, inputs, "all tensors read", |(archive, damages)| {
        let mut files = archives[*archive].clone();
        let (_, pickle) = files
            .iter_mut()
            .find(|(name, _)| name.ends_with("data.pkl"))
            .unwrap();
        let mut program = split(pickle);
        damage_program(&mut program, damages);
        *pickle = program.concat();
        model.spoil(BIN, zipped(&files));
        read_all(&model.open()?)
    });
}

#[test]
fn no_pickle_panics() {
    let model = model();
    let numbers = vec![0; 64];
    // The end of a good one reaches further.
    let inputs = (any::<bool>(), prop::collection::vec(instruction(), 0..60));
    fuzz(128, inputs, "all tensors read", |(good, ops)| {
        let start = if *good {
            &SMALL[..SMALL.len() - 1]
        } else {
            b""
        };
        let program = [start, ops.concat().as_slice(), b"."].concat();
        let files = [("a/data.pkl", program), ("a/data/0", numbers.clone())];
        model.spoil(
            BIN,
            zipped(&files.map(|(name, bytes)| (name.to_owned(), bytes))),
        );
        read_all(&model.open()?)
    });
}

#[test]
fn no_damage_to_a_stream_of_pickles_panics() {
    let (model, whole) = (model(), fixture("bin/stream.bin"));
    let (mut programs, mut at) = (Vec::new(), 0);
    // Magic number, protocol, system, the state dict, the keys.
    for _ in 0..5 {
        programs.push(split(&whole[at..]));
        at += programs[programs.len() - 1].concat().len();
    }
    let numbers = &whole[at..];
    let tail = prop_oneof![
        3 => Just(None),
        1 => (any::<Index>(), prop::sample::select(vec![0u64, 1, 23, 25, 1 << 40, 1 << 61, u64::MAX])).prop_map(Some),
    ];
    let inputs = (prop::collection::vec((0..5usize, damage()), 0..3), tail);
    fuzz(256, inputs, "all tensors read", |(damages, tail)| {
        let (mut programs, mut numbers) = (programs.clone(), numbers.to_vec());
        for (program, damage) in damages {
            // Most of it is the state dict.
            let program = if *program < 4 { 3 } else { 4 };
            damage_program(&mut programs[program], std::slice::from_ref(damage));
        }
        if let Some((at, count)) = tail {
            let at = at.index(numbers.len());
            numbers.splice(at..at, count.to_le_bytes());
        }
        let programs: Vec<u8> = programs.concat().concat();
        model.spoil(BIN, [programs, numbers].concat());
        read_all(&model.open()?)
    });
}

#[test]
fn no_damage_to_an_archive_panics() {
    let (model, archives) = (model(), archives());
    let archives: Vec<Vec<u8>> = archives.iter().map(|files| zipped(files)).collect();
    // Most of the damage goes to the directory, which the archive ends with.
    let edits = prop::collection::vec((any::<bool>(), any::<Index>(), any::<u8>()), 1..5);
    let cut = prop_oneof![4 => Just(None), 1 => any::<Index>().prop_map(Some)];
    let inputs = (0..archives.len(), edits, cut);
    fuzz(256, inputs, "all tensors read", |(archive, edits, cut)| {
        let mut bytes = archives[*archive].clone();
        let directory = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        for (anywhere, at, byte) in edits {
            let start = if *anywhere { 0 } else { directory };
            let at = start + at.index(bytes.len() - start);
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        model.spoil(BIN, bytes);
        read_all(&model.open()?)
    });
}
