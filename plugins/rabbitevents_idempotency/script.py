"""The steps of a claim as Redis does them: one script for many keys, each by itself, on Redis's own clock.

A record is a string: state, fence, how often it was abandoned, when the lease ends (milliseconds since 1970), owner,
digest. What is asked of all keys comes as one text, since a client packs one argument faster than a thousand: a line
each with the step, how long the lease is and how long to keep the record (both in milliseconds), the owner and the
digest. The step "ask" is a claim that takes nothing over; "probe" writes, whatever is there. So with the answers.
Numbers stay the texts that they are, unless they change: that halves the time of the script.

The first line of the answer is the caller's ticket, so that no reply is ever taken for another's (CVE-2023-28858 and
28859), and Redis's time. What Redis reads late, when it stood still and nobody waits for the answer any more, takes no
lease over: its owner could not renew it either.

A key that holds something else is refused alone. Where Redis cannot write, the whole answer is its error: the client
must see a READONLY to look for the new master.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

SCRIPT: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local is_late, failure = now > tonumber(ARGV[2]), nil

local function text(number) return string.format('%.0f', number) end
local stamp = text(now)

local function write(key, keep, state, fence, abandoned, till, owner, digest)
  local record = state .. ' ' .. fence .. ' ' .. abandoned .. ' ' .. till .. ' ' .. owner .. ' ' .. digest
  failure = failure or redis.pcall('SET', key, record, 'PX', keep).err
  return 'yes'
end

local function answer(key, step, length, keep, caller, mine)
  local state, fence, abandoned, till, owner, digest = 'unknown', stamp, 0, 0, caller, ''
  local record = redis.pcall('GET', key)
  if type(record) == 'table' then
    if record.err:find('WRONGTYPE', 1, true) then return 'refused' end
    failure = record.err
    return 'no'
  elseif record then
    state, fence, abandoned, till, owner, digest = record:match('^(%a+) (%d+) (%d+) (%d+) ([^ ]*) ?([^ ]*)$')
    if not state then return 'refused' end
  end
  local is_own = owner == caller and state ~= 'free'

  if step == 'claim' or step == 'ask' then
    if mine ~= '' and digest ~= '' and mine ~= digest then return 'conflict' end
    if state == 'done' then return 'done' end
    if state ~= 'claimed' or not is_own then
      if state == 'claimed' then
        if now < tonumber(till) or is_late or step == 'ask' then return 'busy ' .. text(math.max(0, till - now)) end
        abandoned = text(abandoned + 1)
      end
      if record then fence = text(math.max(fence + 1, now)) end
    end
    write(key, keep, 'claimed', fence, abandoned, text(now + length), caller, mine)
    return 'acquired ' .. fence .. ' ' .. abandoned
  elseif step == 'probe' then
    return write(key, keep, 'free', stamp, 0, 0, '', '')
  elseif is_own and step == 'renew' and state ~= 'done' then
    return write(key, keep, 'claimed', fence, abandoned, text(now + length), caller, digest)
  elseif is_own and step == 'complete' then
    return write(key, keep, 'done', fence, abandoned, 0, caller, digest)
  elseif is_own and state == 'claimed' and (step == 'release' or step == 'forget') then
    return write(key, keep, 'free', fence, step == 'forget' and 0 or abandoned, 0, '', '')
  end
  return 'no'
end

local answers = {ARGV[1] .. ' ' .. stamp}
for step, length, keep, caller, mine in ARGV[3]:gmatch('([^ ]+) ([^ ]+) ([^ ]+) ([^ ]*) ([^\\n]*)\\n') do
  answers[#answers + 1] = answer(KEYS[#answers], step, length, keep, caller, mine)
end
if failure then return redis.error_reply(failure) end
return table.concat(answers, '\\n')
"""

SHA: Final = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""What Redis calls the script."""
