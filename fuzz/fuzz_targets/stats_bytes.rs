#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vitq_fuzz::stats_bytes(data);
});
