//! The protobuf format: `eu.interop.DiagnosisKeyBatch` (spec §4.1.3).
//!
//! Written by hand, because it reads straight from the body into the batch, many times faster than generated
//! code that allocates for each key. Its meaning is that of any proto3 decoder.

use super::{
    DecodeError,
    reader::{Reader, WireType},
    varint::append_varint,
};
use crate::{
    country::Country,
    key::{DiagnosisKey, InvalidKey, InvalidReason, KeyBatch, KeyData, KeyRef, MAX_VISITED, ReportType},
};

/// How deeply messages and groups may lie in one another, the batch itself not counted.
const MAX_DEPTH: u32 = 100;

pub(super) fn decode(body: &[u8], max_keys: usize) -> Result<KeyBatch, DecodeError> {
    /// The encoded length of the shortest key that is one: its frame, the key data and the origin.
    const SHORTEST: usize = 2 + 18 + 4;

    let mut batch = KeyBatch::with_capacity(max_keys.min(body.len() / SHORTEST));
    let mut reader = Reader::new(body);
    while let Some((field, wire_type)) = reader.field()? {
        if field == 1 {
            let key = reader.message(wire_type)?;
            if batch.len() == max_keys {
                return Err(DecodeError::TooManyKeys { max: max_keys });
            }
            read_key(key, &mut batch)?;
        } else {
            reader.skip(field, wire_type, MAX_DEPTH)?;
        }
    }
    Ok(batch)
}

pub(super) fn decode_key(bytes: &[u8], into: &mut KeyBatch) -> Result<(), DecodeError> {
    read_key(Reader::new(bytes), into).inspect_err(|_| into.abandon())
}

fn read_key(mut reader: Reader<'_>, batch: &mut KeyBatch) -> Result<(), DecodeError> {
    let index = batch.len();
    let invalid = |reason| DecodeError::InvalidKey(InvalidKey { index, reason });

    let mut key_data: &[u8] = &[];
    let mut origin: &[u8] = &[];
    let (mut rolling_start_interval_number, mut rolling_period) = (0, 0);
    let (mut transmission_risk_level, mut report_type, mut days_since_onset_of_symptoms) = (0, 0, 0);
    let mut visited = 0;
    while let Some((field, wire_type)) = reader.field()? {
        match field {
            1 => key_data = reader.bytes(wire_type)?,
            2 => rolling_start_interval_number = reader.uint32(wire_type)?,
            3 => rolling_period = reader.uint32(wire_type)?,
            4 => transmission_risk_level = reader.uint32(wire_type)? as i32,
            5 => {
                let text = reader.string(wire_type)?;
                if visited == MAX_VISITED {
                    return Err(invalid(InvalidReason::TooManyVisitedCountries));
                }
                let country = Country::from_bytes(text).map_err(|error| {
                    invalid(InvalidReason::VisitedCountry { position: visited, invalid: error })
                })?;
                batch.visit(country);
                visited += 1;
            }
            6 => origin = reader.string(wire_type)?,
            7 => report_type = reader.uint32(wire_type)? as i32,
            8 => {
                let zigzag = reader.uint32(wire_type)?;
                days_since_onset_of_symptoms = (zigzag >> 1) as i32 ^ -((zigzag & 1) as i32);
            }
            _ => reader.skip(field, wire_type, MAX_DEPTH - 1)?,
        }
    }

    let key_data =
        key_data.try_into().map_err(|_| invalid(InvalidReason::KeyDataLength { found: key_data.len() }))?;
    batch.close(DiagnosisKey {
        key_data: KeyData::new(key_data),
        rolling_start_interval_number,
        rolling_period,
        transmission_risk_level,
        origin: Country::from_bytes(origin).map_err(|error| invalid(InvalidReason::Origin(error)))?,
        report_type: ReportType::from_number(report_type)
            .ok_or_else(|| invalid(InvalidReason::ReportType { found: report_type.to_string() }))?,
        days_since_onset_of_symptoms,
    });
    Ok(())
}

pub(super) fn encode(batch: &KeyBatch) -> Vec<u8> {
    let mut out = Vec::new();
    let mut message = Vec::new();
    for key in batch.iter() {
        message.clear();
        encode_key(key, &mut message);
        append_protobuf_field(&message, &mut out);
    }
    out
}

/// Appends a key's message to a batch: framed as the batch's field, so that a batch is nothing but such fields
/// behind one another.
pub fn append_protobuf_field(key_message: &[u8], out: &mut Vec<u8>) {
    append_bytes(1, key_message, out);
}

pub(super) fn encode_key(key: KeyRef<'_>, out: &mut Vec<u8>) {
    append_bytes(1, key.key_data.as_bytes(), out);
    append_number(2, key.rolling_start_interval_number.into(), out);
    append_number(3, key.rolling_period.into(), out);
    append_number(4, i64::from(key.transmission_risk_level) as u64, out);
    for country in key.visited_countries() {
        append_bytes(5, country.as_bytes(), out);
    }
    append_bytes(6, key.origin.as_bytes(), out);
    append_number(7, key.report_type.number() as u64, out);
    let days = key.days_since_onset_of_symptoms;
    append_number(8, (days << 1 ^ days >> 31) as u32 as u64, out);
}

fn append_bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | WireType::LengthDelimited as u8);
    append_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends a number, unless it is 0: proto3 leaves out what has its default value.
fn append_number(field: u8, number: u64, out: &mut Vec<u8>) {
    if number != 0 {
        out.push(field << 3 | WireType::Varint as u8);
        append_varint(number, out);
    }
}
