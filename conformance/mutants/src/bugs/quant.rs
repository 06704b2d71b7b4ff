//! The formats of quantised weights. A bug in one is planted in the bytes that the right kernel reads.

use halyard_sdk::{OpKind, Scheme, WeightDesc};

use crate::{
    mutant::{Mutant, bug},
    weights::Part,
};

const LINEAR: OpKind = OpKind::LINEAR;

/// Changes each block of weights of one scheme.
fn blocks(w: &WeightDesc<'_>, parts: &mut [Part], scheme: Scheme, change: impl Fn(&mut [u8])) {
    if let (true, Some((_, bytes))) = (w.scheme == scheme, scheme.gguf_block()) {
        parts[0].bytes.chunks_exact_mut(bytes as usize).for_each(change);
    }
}

/// Gives each block of a row the bytes `at` of the block before it.
fn from_neighbour(w: &WeightDesc<'_>, part: &mut Part, at: std::ops::Range<usize>) {
    let Some((_, bytes)) = w.scheme.gguf_block() else { return };
    for row in part.rows() {
        let old = row.to_vec();
        for (i, block) in row.chunks_exact_mut(bytes as usize).enumerate().skip(1) {
            let before = (i - 1) * bytes as usize;
            block[at.clone()].copy_from_slice(&old[before..][at.clone()]);
        }
    }
}

fn swap_nibbles(codes: &mut [u8]) {
    codes.iter_mut().for_each(|b| *b = b.rotate_left(4));
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("q4_0_nibbles_swapped", LINEAR, "the low nibble is taken for the later element")
        .profile("quant:q4_0")
        .weight(|w, p| blocks(w, p, Scheme::GGUF_Q4_0, |b| swap_nibbles(&mut b[2..]))),
    bug("q4_0_nibbles_adjacent", LINEAR, "nibbles of a byte are taken for neighbouring elements")
        .profile("quant:q4_0")
        .weight(|w, p| {
            blocks(w, p, Scheme::GGUF_Q4_0, |b| {
                let code = |i: usize| b[2 + i / 2] >> (i % 2 * 4) & 15;
                let codes: Vec<u8> = (0..32).map(code).collect();
                for i in 0..16 {
                    b[2 + i] = codes[i] | codes[16 + i] << 4;
                }
            });
        }),
    bug("q4_0_scale_of_neighbour", LINEAR, "a block has the scale of the one before")
        .profile("quant:q4_0")
        .weight(|w, p| from_neighbour(w, &mut p[0], 0..2)),
    bug("q4_1_minimum_ignored", LINEAR, "the minimum counts as 0")
        .profile("quant:q4_1")
        .weight(|w, p| blocks(w, p, Scheme::GGUF_Q4_1, |b| b[2..4].fill(0))),
    bug("q5_0_high_bits_ignored", LINEAR, "the fifth bit counts as 0")
        .profile("quant:q5_0")
        .weight(|w, p| blocks(w, p, Scheme::GGUF_Q5_0, |b| b[2..6].fill(0))),
    bug("q5_0_high_bits_of_other_half", LINEAR, "fifth bits of the two halves are swapped")
        .profile("quant:q5_0")
        .weight(|w, p| blocks(w, p, Scheme::GGUF_Q5_0, |b| b[2..6].rotate_left(2))),
    bug("q5_1_minimum_negated", LINEAR, "the minimum is taken off")
        .profile("quant:q5_1")
        .weight(|w, p| blocks(w, p, Scheme::GGUF_Q5_1, |b| b[3] ^= 0x80)),
    bug("q8_0_minus_128_clamped", LINEAR, "the code -128 becomes -127")
        .profile("quant:q8_0")
        .weight(|w, p| {
            blocks(w, p, Scheme::GGUF_Q8_0, |b| {
                b[2..].iter_mut().filter(|c| **c == 0x80).for_each(|c| *c = 0x81);
            });
        }),
    bug("q8_0_last_block_lost", LINEAR, "the last block of a row of several counts as 0")
        .profile("quant:q8_0")
        .weight(|_, p| {
            let many = p[0].pitch > 34;
            p[0].rows().filter(|_| many).for_each(|row| {
                let end = row.len();
                row[end - 34..end - 32].fill(0);
            });
        }),
    bug("q2_k_scale_and_minimum_swapped", LINEAR, "nibbles of the inner scales are swapped")
        .profile("quant:q2_k")
        .weight(|w, p| blocks(w, p, Scheme::GGUF_Q2_K, |b| swap_nibbles(&mut b[..16]))),
    bug("q3_k_high_bit_inverted", LINEAR, "the third bit is taken the other way round")
        .profile("quant:q3_k")
        .weight(|w, p| {
            blocks(w, p, Scheme::GGUF_Q3_K, |b| b[..32].iter_mut().for_each(|h| *h = !*h));
        }),
    bug("q3_k_scale_high_bits_lost", LINEAR, "inner scales have four bits instead of six")
        .profile("quant:q3_k")
        .weight(|w, p| blocks(w, p, Scheme::GGUF_Q3_K, |b| b[104..108].fill(0))),
    bug(
        "q4_k_scale_bits_lost",
        LINEAR,
        "sub-blocks 4 to 7 have four bits of their scale instead of six",
    )
    .profile("quant:q4_k")
    .weight(|w, p| {
        blocks(w, p, Scheme::GGUF_Q4_K, |b| b[4..8].iter_mut().for_each(|s| *s &= 63));
    }),
    bug(
        "q4_k_minimum_of_neighbour",
        LINEAR,
        "a super-block has the minimum scale of the one before",
    )
    .profile("quant:q4_k")
    .weight(|w, p| from_neighbour(w, &mut p[0], 2..4)),
    bug("q5_k_high_bits_shifted", LINEAR, "fifth bits are those of the next sub-block")
        .profile("quant:q5_k")
        .weight(|w, p| {
            blocks(w, p, Scheme::GGUF_Q5_K, |b| {
                b[16..48].iter_mut().for_each(|h| *h = h.rotate_right(1));
            });
        }),
    bug("q6_k_scale_sign_lost", LINEAR, "inner scales are taken for unsigned")
        .profile("quant:q6_k")
        .weight(|w, p| {
            blocks(w, p, Scheme::GGUF_Q6_K, |b| b[192..208].iter_mut().for_each(|s| *s &= 127));
        }),
    bug("q6_k_low_bits_swapped", LINEAR, "low nibbles are taken for those of the other half")
        .profile("quant:q6_k")
        .weight(|w, p| blocks(w, p, Scheme::GGUF_Q6_K, |b| swap_nibbles(&mut b[..128]))),
    bug("iq4_nl_table_reversed", LINEAR, "the table of values is read from its end")
        .profile("quant:iq4_nl")
        .weight(|w, p| {
            blocks(w, p, Scheme::GGUF_IQ4_NL, |b| b[2..].iter_mut().for_each(|c| *c = !*c));
        }),
    bug(
        "embedding_of_quantised_neighbour",
        OpKind::EMBEDDING,
        "a block of a table has the neighbour's scale",
    )
    .profile("quant:q8_0")
    .weight(|w, p| from_neighbour(w, &mut p[0], 0..2)),
    bug(
        "experts_quantised_row_off",
        OpKind::MOE_EXPERTS,
        "rows of quantised experts are stored one late",
    )
    .profile("quant:q4_k")
    .weight(|_, p| {
        let pitch = p[0].pitch;
        p[0].bytes.rotate_right(pitch);
    }),
];
