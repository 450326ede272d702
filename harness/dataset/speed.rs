//! How fast JPEGs are decoded here, and by what. In: nothing. Out: whether libjpeg uses SIMD, and a rate.

use std::ffi::c_int;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use mozjpeg::{ColorSpace, Compress};

use super::picture::{decode, with_libjpeg};

/// Height and width of the test image, common in ImageNet.
pub const SIDES: (usize, usize) = (375, 500);

unsafe extern "C" {
    fn jsimd_can_idct_islow() -> c_int;
}

/// Whether libjpeg was built with its SIMD kernels, and the processor has them. The pixels are the same without.
pub fn uses_simd() -> bool {
    // SAFETY: a function of libjpeg's that looks at the processor; it takes and keeps nothing.
    unsafe { jsimd_can_idct_islow() != 0 }
}

/// A made-up JPEG. Its noise takes 1.9 bytes a pixel, several times what photographs take.
///
/// # Errors
/// libjpeg's reason.
pub fn made_up_jpeg(height: usize, width: usize, seed: u64) -> Result<Vec<u8>, String> {
    let pixel = |i: usize| {
        let wave = (i / 3 % width + 2 * (i / 3 / width) + 60 * (i % 3)) % 200;
        // Noise, which fills the coefficients: the upper bits of a product.
        let noise = (i as u64 ^ seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 59;
        (wave as u64 + noise) as u8
    };
    let pixels: Vec<u8> = (0..3 * height * width).map(pixel).collect();
    with_libjpeg(AssertUnwindSafe(|| {
        let mut jpeg = Compress::new(ColorSpace::JCS_RGB);
        jpeg.set_size(width, height);
        // Those of libjpeg.
        jpeg.set_fastest_defaults();
        jpeg.set_quality(92.0);
        let mut started = jpeg.start_compress(Vec::new())?;
        started.write_scanlines(&pixels)?;
        started.finish()
    }))
}

/// Images of [`SIDES`] that one thread decodes in a second.
///
/// # Errors
/// As [`made_up_jpeg`].
pub fn decoding_rate() -> Result<f64, String> {
    let file = made_up_jpeg(SIDES.0, SIDES.1, 0)?;
    let (start, mut images) = (Instant::now(), 0_u32);
    while start.elapsed() < Duration::from_millis(200) {
        decode(&file)?;
        images += 1;
    }
    Ok(f64::from(images) / start.elapsed().as_secs_f64())
}
