//! One image file to pixels, as `Image.open(path).convert("RGB")` of Pillow gives them. In: the bytes of a JPEG (or a
//! PNG: one of ImageNet's files is one under a JPEG's name). Out: a [`Picture`], or the reason why there is none.
//!
//! Decoders differ by a level here and there; libjpeg's, which Pillow has, differs from Pillow in nothing.

use std::io::{BufRead, Cursor, Error, Read};

use image::{ColorType, ImageDecoder};
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

/// Decodes a whole image file.
///
/// # Errors
/// Why it cannot be decoded, in words: it is no JPEG or PNG, cut short, damaged or absurdly large.
pub fn decode(file: &[u8]) -> Result<Picture, String> {
    if file.starts_with(PNG_MAGIC) {
        return decode_png(file);
    }
    if !file.starts_with(b"\xff\xd8\xff") {
        return Err("it is neither a JPEG nor a PNG file".to_owned());
    }
    // libjpeg's fatal errors unwind out of it, without a panic.
    let outcome = std::panic::catch_unwind(|| decode_jpeg(file).map_err(|error| error.to_string()));
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

fn decode_jpeg(file: &[u8]) -> std::io::Result<Picture> {
    let decoder = Decompress::new_reader(Whole(file))?;
    let (width, height) = decoder.size();
    check_size(width, height).map_err(Error::other)?;
    let four = matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    let mut started = decoder.to_colorspace(if four { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB })?;
    let mut pixels: Vec<u8> = started.read_scanlines()?;
    started.finish()?;
    if four {
        pixels = pixels.chunks_exact(4).flat_map(|ink| rgb_of([ink[0], ink[1], ink[2], ink[3]])).collect();
    }
    Ok(Picture { height: height as i64, width: width as i64, pixels })
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

fn decode_png(file: &[u8]) -> Result<Picture, String> {
    let decoder = image::codecs::png::PngDecoder::new(Cursor::new(file)).map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    check_size(width as usize, height as usize)?;
    let colour = decoder.color_type();
    if !matches!(colour, ColorType::L8 | ColorType::La8 | ColorType::Rgb8 | ColorType::Rgba8) {
        return Err(format!("it is a PNG of {colour:?} pixels; 8 bits a channel are needed"));
    }
    // An alpha channel is dropped, not blended.
    let pixels = image::DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?.into_rgb8();
    Ok(Picture { height: i64::from(height), width: i64::from(width), pixels: pixels.into_raw() })
}
