"""The steps of a claim as Redis does them: one script, one key, Redis's own clock.

A record is a string: state, fence, how often it was abandoned, when the lease ends (milliseconds since 1970), owner.
What is asked comes as one string too, since a client packs one argument faster than six: a ticket, the time after which the
question is late, the step, how long the lease is and how long to keep the record (both in milliseconds), and the owner.
The step "ask" is a claim that takes nothing over.

The answer begins with the caller's ticket, so that no reply is ever taken for another's (CVE-2023-28858 and 28859), and
with Redis's time. A command that Redis reads late, when it stood still and nobody waits for the answer any more, takes no
lease over: its owner could not renew it either.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ticket, late, step, length, keep, caller = ARGV[1]:match('^(%d+) (%d+) (%a+) (%d+) (%d+) (.*)$')
local head, is_late = string.format('%s %.0f ', ticket, now), now > tonumber(late)
local state, fence, abandoned, till, owner = 'unknown', 0, 0, 0, caller
local record = redis.call('GET', KEYS[1])
if record then
  state, fence, abandoned, till, owner = record:match('^(%a+) (%d+) (%d+) (%d+) (.*)$')
  if not state then return redis.error_reply('ERR the key holds something else than a claim') end
  fence, abandoned, till = tonumber(fence), tonumber(abandoned), tonumber(till)
end
local is_own = owner == caller and state ~= 'free'

local function write(state, till, owner)
  local record = string.format('%s %.0f %.0f %.0f %s', state, fence, abandoned, till, owner)
  redis.call('SET', KEYS[1], record, 'PX', keep)
  return head .. 'yes'
end

if step == 'claim' or step == 'ask' then
  if state == 'done' then return head .. 'done' end
  if state ~= 'claimed' or not is_own then
    if state == 'claimed' then
      if now < till or is_late or step == 'ask' then
        return string.format('%sbusy %.0f', head, math.max(0, till - now))
      end
      abandoned = abandoned + 1
    end
    fence = math.max(fence + 1, now)
  end
  write('claimed', now + length, caller)
  return string.format('%sacquired %.0f %.0f', head, fence, abandoned)
end

if state == 'unknown' then fence = now end
if step == 'renew' and is_own and state ~= 'done' then return write('claimed', now + length, caller) end
if step == 'complete' and is_own then return write('done', 0, caller) end
if step == 'release' and is_own and state == 'claimed' then return write('free', 0, '') end
if step == 'forget' and is_own and state == 'claimed' then
  abandoned = 0
  return write('free', 0, '')
end
return head .. 'no'
"""

SHA: Final = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""What Redis calls the script."""
