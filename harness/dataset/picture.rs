//! One image file to pixels, as `Image.open(path).convert("RGB")` of Pillow gives them. In: the bytes of a JPEG (or a
//! PNG: one of ImageNet's files is one under a JPEG's name). Out: its sides, and its pixels written where the caller wants
//! them; or the reason why there are none.
//!
//! Decoders differ by a level here and there; Pillow uses libjpeg, so we do too: bit-exact.

use std::io::{BufRead, Cursor, Error, Read};
use std::panic::{AssertUnwindSafe, UnwindSafe};

use mozjpeg::{ColorSpace, Decompress};

/// An 8-bit RGB image on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub height: i64,
    pub width: i64,
    /// `height * width` times red, green, blue, row by row.
    pub pixels: Vec<u8>,
}

/// Pixels of the largest image accepted: where Pillow suspects an attack.
const MOST_PIXELS: usize = 178_956_970;

const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";

/// How files of other kinds begin.
const OTHERS: [(&[u8], &str); 5] =
    [(b"GIF8", "GIF"), (b"RIFF", "WebP"), (b"BM", "BMP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF")];

/// Decodes a whole image file.
///
/// # Errors
/// Why it cannot be decoded, in words: it is no JPEG or PNG, cut short, damaged or absurdly large.
pub fn decode(file: &[u8]) -> Result<Picture, String> {
    let (height, width) = sides(file)?;
    let mut pixels = vec![0; 3 * (height * width) as usize];
    decode_into(file, &mut pixels)?;
    Ok(Picture { height, width, pixels })
}

/// Height and width of the image in a file, of which only the head is read.
///
/// # Errors
/// As [`decode`], as far as the head tells.
pub fn sides(file: &[u8]) -> Result<(i64, i64), String> {
    let (width, height) = match is_png(file)? {
        true => {
            let (width, height) = png_reader(file)?.info().size();
            (width as usize, height as usize)
        }
        false => with_libjpeg(|| Ok(Decompress::new_reader(Whole(file))?.size()))?,
    };
    check_size(width, height)?;
    Ok((height as i64, width as i64))
}

/// Decodes a whole image file into `pixels`, which has room for what [`sides`] says: red, green, blue, row by row.
///
/// # Errors
/// As [`decode`].
pub fn decode_into(file: &[u8], pixels: &mut [u8]) -> Result<(), String> {
    match is_png(file)? {
        true => decode_png(file, pixels),
        false => with_libjpeg(AssertUnwindSafe(|| decode_jpeg(file, pixels))),
    }
}

/// Whether the file is a PNG; else it is a JPEG.
fn is_png(file: &[u8]) -> Result<bool, String> {
    match file {
        _ if file.starts_with(PNG_MAGIC) => Ok(true),
        _ if file.starts_with(b"\xff\xd8\xff") => Ok(false),
        [] => Err("it is empty".to_owned()),
        _ => Err(match OTHERS.iter().find(|(magic, _)| file.starts_with(magic)) {
            Some((_, kind)) => format!("it is a {kind} file, whatever its name says"),
            None => "it is neither a JPEG nor a PNG file".to_owned(),
        }),
    }
}

/// What `work` gives. libjpeg's fatal errors unwind out of it, without a panic.
pub(super) fn with_libjpeg<T>(work: impl FnOnce() -> std::io::Result<T> + UnwindSafe) -> Result<T, String> {
    let outcome = std::panic::catch_unwind(|| work().map_err(|error| error.to_string()));
    outcome.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map_or("no reason given", String::as_str);
        match text.strip_prefix("libjpeg fatal error: ").unwrap_or(text) {
            // What `Whole` says where the bytes end, in libjpeg's words.
            "Input file read error" => Err("it is cut short".to_owned()),
            text => Err(format!("libjpeg says '{text}'")),
        }
    })
}

/// The bytes of a file that must hold its image whole: libjpeg would go on with grey where they end.
struct Whole<'a>(&'a [u8]);

impl BufRead for Whole<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.0.is_empty() {
            return Err(Error::other("the file ends"));
        }
        Ok(self.0)
    }

    fn consume(&mut self, amount: usize) {
        self.0 = &self.0[amount..];
    }
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

fn decode_jpeg(file: &[u8], pixels: &mut [u8]) -> std::io::Result<()> {
    let decoder = Decompress::new_reader(Whole(file))?;
    if !matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK) {
        let mut started = decoder.to_colorspace(ColorSpace::JCS_RGB)?;
        started.read_scanlines_into(pixels)?;
        return started.finish();
    }
    let mut started = decoder.to_colorspace(ColorSpace::JCS_CMYK)?;
    let inks: Vec<[u8; 4]> = started.read_scanlines()?;
    started.finish()?;
    for (pixel, ink) in pixels.chunks_exact_mut(3).zip(inks) {
        pixel.copy_from_slice(&rgb_of(ink));
    }
    Ok(())
}

/// The colour of inks stored the Adobe way, 255 for none, as Pillow takes every JPEG's.
fn rgb_of([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|ink| {
        let (ink, black) = (i32::from(255 - ink), i32::from(black));
        // ink * black / 255, rounded.
        let product = ink * black + 128;
        (black - ((product + (product >> 8)) >> 8)).max(0) as u8
    })
}

fn check_size(width: usize, height: usize) -> Result<(), String> {
    match width * height {
        0 => Err("it has no pixels".to_owned()),
        pixels if pixels > MOST_PIXELS => {
            Err(format!("{width} x {height} pixels are more than the {MOST_PIXELS} accepted"))
        }
        _ => Ok(()),
    }
}

/// A reader of 8 bits a channel where the PNG has fewer, or a palette.
fn png_reader(file: &[u8]) -> Result<png::Reader<Cursor<&[u8]>>, String> {
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), png::Limits { bytes: usize::MAX });
    decoder.set_transformations(png::Transformations::EXPAND);
    // Texts and profiles may be compressed, without a bound.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.read_info().map_err(|error| error.to_string())
}

fn decode_png(file: &[u8], pixels: &mut [u8]) -> Result<(), String> {
    let mut reader = png_reader(file)?;
    let (colour, depth) = reader.output_color_type();
    if depth != png::BitDepth::Eight {
        return Err(format!("it is a PNG with {} bits a channel; 8 are needed", depth as u8));
    }
    let mut decoded = vec![0; colour.samples() * pixels.len() / 3];
    reader.next_frame(&mut decoded).map_err(|error| error.to_string())?;
    for (pixel, samples) in pixels.chunks_exact_mut(3).zip(decoded.chunks_exact(colour.samples())) {
        // An alpha channel is dropped, not blended.
        match samples {
            [grey] | [grey, _] => pixel.fill(*grey),
            colours => pixel.copy_from_slice(&colours[..3]),
        }
    }
    Ok(())
}
